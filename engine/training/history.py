"""`History`: what a call of `engine.fit` did, a row per epoch, as text, as a piece of HTML and as curves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autograd.html import block, code, curves, faint, number, table, tag
from engine.training.optimizer import Optimizer
from layers import Module

Row = Mapping[str, float]
_SHOWN = 12  # rows of a repr, the last ones
_ASIDE = ("epoch", "lr", "seconds")  # columns that are no curves


@dataclass(eq=False, repr=False)
class History:
    """rows: of every finished epoch "epoch" (from 1), "loss" (the mean over the samples of the epoch, each at its
    step's weights), "val_loss" and the metrics where there are validation data, "lr" (of the first parameter group, in
    the epoch's last step) and "seconds" (since `fit` was called).

    model, optimizer: what is trained, and by what.  epochs: how many were asked for.  stopped: why there are fewer; ""
    where there are not.
    """

    model: Module
    optimizer: Optimizer
    epochs: int
    rows: list[dict[str, float]] = field(default_factory=list)
    stopped: str = ""

    def __len__(self) -> int:
        """How many epochs are finished."""
        return len(self.rows)

    def __getitem__(self, name: str) -> list[float]:
        """A column, a number per epoch. Raises KeyError, which names the columns, for another name."""
        if self.rows and name not in self.rows[0]:
            raise KeyError(f"History: there is no column {name!r}, but {', '.join(self.rows[0])}")
        return [row[name] for row in self.rows]

    @property
    def watched(self) -> str:
        """The column by which epochs are compared: "val_loss" where there are validation data, else "loss"."""
        return "val_loss" if self.rows and "val_loss" in self.rows[0] else "loss"

    def best_by(self, name: str, largest: bool = False) -> dict[str, float] | None:
        """The first row with the smallest (or largest) number in a column, NaN aside; None where there is none."""
        rows = [row for row, value in zip(self.rows, self[name], strict=True) if not math.isnan(value)]
        return (max if largest else min)(rows, key=lambda row: row[name], default=None)

    @property
    def best(self) -> dict[str, float] | None:
        """The row with the smallest `watched`; None before the first epoch."""
        return self.best_by(self.watched)

    def plot(self, *names: str) -> Any:
        """Draw columns over the epochs with matplotlib (the losses on one axis, metrics on another); returns the
        figure. names: these columns only.
        """
        import matplotlib.pyplot as plt
        from matplotlib.ticker import MaxNLocator

        groups = [[n for n in self._curves() if ("loss" in n) == loss] for loss in (True, False)]
        groups = [list(names)] if names else [group for group in groups if group]
        size = (4.5 * max(1, len(groups)), 3.2)
        figure, axes = plt.subplots(1, max(1, len(groups)), figsize=size, squeeze=False, layout="constrained")
        for axis, group in zip(axes[0], groups, strict=False):
            for name in group:
                axis.plot(self["epoch"], self[name], marker="o", ms=3, label=name)
            axis.set_xlabel("epoch")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            axis.legend()
        return figure

    def _curves(self) -> list[str]:
        return [name for name in self.rows[0] if name not in _ASIDE] if self.rows else []

    def _title(self) -> str:
        return f"{len(self)} of {self.epochs} epochs" + (f", {self.stopped}" if self.stopped else "")

    def __repr__(self) -> str:
        if not self.rows:
            return f"History({self._title()})"
        lines = [list(self.rows[0]), *([number(v) for v in row.values()] for row in self.rows[-_SHOWN:])]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([f"History({self._title()})", *text])

    def _repr_html_(self) -> str:
        title = tag("div", tag("b", "History"), " ", code(self._title()))
        if not self.rows:
            return block(title)
        last = self.rows[-_SHOWN:]
        best = self.best
        strong = next((k for k, row in enumerate(last) if row is best), None)
        rows = table([[number(v) for v in row.values()] for row in last], list(self.rows[0]), left=0, strong=strong)
        above = [faint(f"the last {len(last)}")] if len(last) < len(self.rows) else []
        groups = ({n: self[n] for n in self._curves() if ("loss" in n) == loss} for loss in (True, False))
        drawn = [tag("div", curves(some), style="display: inline-block") for some in groups if some]
        return block(title, *above, rows, *drawn)
