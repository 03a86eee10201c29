"""The page of a report: one file, no network, pictures inside. The template is page.html in the same folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.config import Config, preset
from engine.files import write_text
from engine.report.charts import Chart, Series, line_chart
from engine.report.record import Record, with_profile
from engine.report.tiles import LAYERS
from engine.training.metrics import judged, precision_recall
from engine.training.plots import ERROR, IGNORED
from engine.training.progress import clock, loss_line

GENERATOR = "areograd engine.report"  # the page's meta tag, by which one of ours is told
_MOST_LINES = 12  # lines in a chart
_SAME = 1e-5  # Keras's reading has an epsilon
_MOST_CLASSES = 24  # rows of a confusion matrix
_MOST_OPERATORS = 20


class Fact(NamedTuple):
    """A number of the summary, and what is said below it."""

    name: str
    value: str
    more: str = ""


class ClassRow(NamedTuple):
    """A scored class: the best epoch's IoU, and, where tiles can be read, its interval, precision, recall and share of
    the pixels.
    """

    name: str
    colour: str
    iou: float | None
    interval: tuple[float, float] | None = None
    precision: float | None = None
    recall: float | None = None
    share: float | None = None


class Confusion(NamedTuple):
    """A confusion matrix: names of its rows (truth) and columns (prediction), pixels per row, shares of the row."""

    truth: list[str]
    predicted: list[str]
    pixels: list[int]
    shares: list[list[float]]
    diagonal: list[int]  # of each row, the column of the same class
    left_out: int


class Setting(NamedTuple):
    """A setting as the command line calls it, its value, and that of the preset."""

    name: str
    value: str
    usual: str


class View(NamedTuple):
    """A run with everything that the template draws from it."""

    record: Record
    number: int
    facts: list[Fact]
    charts: list[Chart]
    lacks: list[str]
    classes: list[ClassRow]
    confusion: Confusion | None
    operators: list[dict[str, Any]]
    times: list[Fact]
    own: list[Setting]  # those that differ from the preset
    usual: list[Setting]
    table: list[list[str]]


def write_page(path: Path, records: Sequence[Record]) -> None:
    """Write the page of one run, or of several that are compared."""
    write_text(path, render(records))


def render(records: Sequence[Record]) -> str:
    """The page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    views = [_view(with_profile(record), k) for k, record in enumerate(records)]
    several = len(records) > 1
    return template.render(
        views=views,
        generator=GENERATOR,
        layers=LAYERS,
        error=ERROR,
        ignored=IGNORED,
        comparison=_comparison(records) if several else [],
        compared=_compared_charts(records) if several else [],
        differing=_differing(records) if several else [],
        warnings=_warnings(records) if several else [],
        percent=percent,
    )


# -- numbers as text ---------------------------------------------------------------------------------------------------


def percent(share: float | None) -> str:
    """0.1234 -> '12.3 %', and '–' for none."""
    return "–" if share is None else f"{100 * share:.1f} %"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _counted(value: float | None) -> str:
    """1234567 -> '1.23 M'."""
    if value is None:
        return "–"
    for scale, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}"


# -- one run -----------------------------------------------------------------------------------------------------------


def _view(record: Record, number: int) -> View:
    charts, lacks = _charts(record)
    settings = _settings(record.config)
    return View(
        record,
        number,
        _facts(record),
        charts,
        [*record.missing, *lacks],
        _classes(record),
        _confusion(record),
        _operators(record),
        _times(record),
        [setting for setting in settings if setting.value != setting.usual],
        [setting for setting in settings if setting.value == setting.usual],
        _table(record),
    )


def _interval(summary: dict[str, Any]) -> str:
    low, high = summary["val_miou_fg_interval"]
    return f"95 %: {low:.3f} to {high:.3f}, over {summary.get('interval_over') or 'source image'}s"


def _facts(record: Record) -> list[Fact]:
    summary = record.summary
    seconds = summary.get("seconds")
    planned = record.config.epochs
    end = "interrupted" if summary["interrupted"] else "stopped early" if summary["epochs"] < planned else "finished"
    rest = f"; {planned} were planned" if summary["epochs"] < planned else ""
    return [
        Fact("mean IoU (fg)", _score(summary["val_miou_fg"]), _interval(summary)),
        Fact("mean IoU (keras)", _score(summary["val_miou_keras"]), "Keras's reading"),
        Fact("pixel accuracy", percent(summary["accuracy"]), "of the labelled pixels"),
        Fact("best epoch", str(summary["best_epoch"]), f"of {summary['epochs']}, {end}{rest}"),
        Fact(
            "time", "–" if seconds is None else clock(seconds), f"{_counted(summary.get('images_per_second'))} images/s"
        ),
        Fact(
            "parameters",
            _counted(summary.get("parameters")),
            f"{_counted(summary.get('flops_per_image'))}FLOP an image",
        ),
        Fact(
            "tiles", str(summary.get("train_tiles") or "–"), f"to train, {summary.get('val_tiles') or '–'} to validate"
        ),
    ]


def _column(record: Record, value: Callable[[dict[str, Any]], Any]) -> list[Any]:
    return [value(row) for row in record.rows]


def _terms(record: Record) -> list[str]:
    return list(dict.fromkeys(name for row in record.rows for name in row.get("terms") or {}))


def _charts(record: Record) -> tuple[list[Chart], list[str]]:
    """The charts of a run, and what it did not record."""
    epochs = _column(record, lambda row: row["epoch"])
    best = record.summary["best_epoch"]
    names = record.classes.scored_names
    iou = [Series(name, _column(record, lambda row, k=k: row["iou"][k])) for k, name in enumerate(names)]
    weakest = f"the {_MOST_LINES} classes that ended lowest" if len(iou) > _MOST_LINES else ""
    iou.sort(key=lambda line: math.inf if line.values[-1] is None else line.values[-1]) if weakest else None
    norms = _column(record, lambda row: row.get("gradient_norms") or {})
    parts = list(dict.fromkeys(name for row in norms for name in row))
    limit = record.config.clip
    terms = [
        Series(name, _column(record, lambda row, name=name: (row.get("terms") or {}).get(name)))
        for name in _terms(record)
    ]
    loss = Series("sum", _column(record, lambda row: row["train_loss"]))
    mean = [
        Series("fg", _column(record, lambda row: row["val_miou_fg"])),
        Series("keras", _column(record, lambda row: row["val_miou_keras"])),
    ]
    readings = "fg and keras are two readings of it."
    if max(abs(a - b) for a, b in zip(*(line.values for line in mean), strict=True)) < _SAME:
        mean, readings = mean[:1], "Its two readings, fg and keras, agree here."
    norm = [
        Series("mean", _column(record, lambda row: row.get("gradient_norm"))),
        Series("largest", _column(record, lambda row: row.get("largest_gradient_norm"))),
    ]
    charts = [
        line_chart("Validation mean IoU", epochs, mean, best=best, note=readings),
        line_chart(
            "IoU of each class", epochs, iou[:_MOST_LINES], best=best, note=weakest or "On the validation tiles."
        ),
        line_chart(
            "Training loss and its terms",
            epochs,
            [loss, *terms],
            ".4f",
            note=_capital(loss_line(record.config.loss_terms())),
        ),
        line_chart(
            "Gradient norm",
            epochs,
            norm,
            ".3g",
            logarithmic=True,
            note=f"Over the steps of an epoch, before clipping at {limit:g}."
            if limit
            else "Over the steps of an epoch.",
        ),
        line_chart(
            "Gradient norm by part of the network",
            epochs,
            [Series(part, [row.get(part) for row in norms]) for part in parts][:_MOST_LINES],
            ".3g",
            logarithmic=True,
            note="In the last step of each epoch.",
        ),
        line_chart("Learning rate", epochs, [Series("rate", _column(record, lambda row: row["learning_rate"]))], ".2e"),
    ]
    lacks = (
        [] if any(v is not None for line in norm for v in line.values) else ["This run did not record gradient norms."]
    )
    return [chart for chart in charts if chart is not None], lacks


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _classes(record: Record) -> list[ClassRow]:
    classes = record.classes
    iou = record.summary["iou"]
    names = zip(classes.scored, classes.scored_names, strict=True)
    rows = [ClassRow(name, classes.colours[label], iou.get(name)) for label, name in names]
    if record.scores is None:
        return rows
    pixels = judged(record.scores.confusion, classes).sum(1)
    precision, recall = precision_recall(record.scores.confusion, classes)
    return [
        row._replace(
            interval=record.scores.intervals[k],
            precision=precision[k],
            recall=recall[k],
            share=float(pixels[label] / max(1, pixels.sum())),
        )
        for k, (row, label) in enumerate(zip(rows, classes.scored, strict=True))
    ]


def _confusion(record: Record) -> Confusion | None:
    """Of the classes with most pixels, where there are many; columns of classes that are never predicted are left out,
    unless they are rows.
    """
    if record.scores is None:
        return None
    counts = judged(record.scores.confusion, record.classes)
    pixels = counts.sum(1)
    there = [label for label in np.argsort(-pixels, kind="stable") if pixels[label]]
    truth = sorted(int(label) for label in there[:_MOST_CLASSES])
    others = [label for label in range(len(counts)) if label not in truth and counts[truth, label].any()]
    predicted = sorted([*truth, *others[: _MOST_CLASSES - len(truth)]])
    names = record.classes.names
    return Confusion(
        [names[label] for label in truth],
        [names[label] for label in predicted],
        [int(pixels[label]) for label in truth],
        [[float(counts[t, p] / pixels[t]) for p in predicted] for t in truth],
        [predicted.index(label) for label in truth],
        len(there) - len(truth),
    )


def _operators(record: Record) -> list[dict[str, Any]]:
    """The rows of the table of operators, the longest first."""
    profile = record.profile
    if profile is None:
        return []
    whole = profile.step_seconds or sum(o.seconds for o in profile.operators) or 1.0
    rows = [
        {
            "name": o.name,
            "calls": o.calls,
            "milliseconds": f"{1000 * o.seconds:.2f}",
            "share": o.seconds / whole,
            "flops": _counted(o.flops / o.seconds) if o.flops and o.seconds else "–",
            "bytes": _counted(o.bytes / o.seconds) if o.bytes and o.seconds else "–",
        }
        for o in profile.operators[:_MOST_OPERATORS]
    ]
    named = sum(o.seconds for o in profile.operators[:_MOST_OPERATORS])
    rest = whole - named
    if rest > 0.001 * whole:
        rows.append(
            {
                "name": "all else",
                "calls": "–",
                "milliseconds": f"{1000 * rest:.2f}",
                "share": rest / whole,
                "flops": "–",
                "bytes": "–",
            }
        )
    return rows


def _times(record: Record) -> list[Fact]:
    """Where the run's time went, as far as it was recorded."""
    rows = record.rows
    training = [row.get("training_seconds") for row in rows]
    ends = [row.get("seconds") for row in rows]
    facts = []
    if record.profile is not None:
        facts.append(Fact("one step", f"{1000 * record.profile.step_seconds:.1f} ms", "profiled, operator by operator"))
    if None not in training and None not in ends:
        between = [b - a for a, b in zip([0.0, *ends], ends, strict=False)]
        facts.append(Fact("training", clock(sum(training)), f"{np.median(training):.1f} s in the median epoch"))
        rest = [max(0.0, b - t) for b, t in zip(between, training, strict=True)]
        later = f", {np.median(rest[1:]):.1f} s in the median of the others" if len(rest) > 1 else ""
        facts.append(Fact("data, validation, saving", clock(sum(rest)), f"{rest[0]:.1f} s in the first epoch{later}"))
    return facts


def _settings(config: Config) -> list[Setting]:
    usual = preset(config.preset)
    names = [field.name for field in fields(Config)]
    return [Setting(_option(n), _setting(getattr(config, n)), _setting(getattr(usual, n))) for n in names]


def _option(name: str) -> str:
    """A setting as the command line calls it."""
    return name.replace("_", "-")


def _setting(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "–"


def _table(record: Record) -> list[list[str]]:
    """The numbers of every epoch, with a row of heads."""
    heads = ["epoch", "loss", *_terms(record), "fg", "keras", *record.classes.scored_names, "rate", "images/s"]
    rows = [
        [
            str(row["epoch"]),
            f"{row['train_loss']:.4f}",
            *(
                f"{value:.3f}" if (value := (row.get("terms") or {}).get(name)) is not None else "–"
                for name in _terms(record)
            ),
            _score(row["val_miou_fg"]),
            _score(row["val_miou_keras"]),
            *map(_score, row["iou"]),
            f"{row['learning_rate']:.2e}",
            f"{row['images_per_second']:.0f}",
        ]
        for row in record.rows
    ]
    return [heads, *rows]


# -- several runs ------------------------------------------------------------------------------------------------------


def _same_classes(records: Sequence[Record]) -> bool:
    return len({record.classes.scored_names for record in records}) == 1


def _comparison(records: Sequence[Record]) -> list[tuple[str, list[str], int | None]]:
    """Rows of the table of scores: what, a value per run, and which is best."""
    rows: list[tuple[str, list[str], int | None]] = []

    def add(name: str, values: Sequence[float | None], form: Callable[[Any], str], better: bool = False) -> None:
        known = [v for v in values if v is not None]
        top = max(known) if better and known else None
        at = values.index(top) if top is not None and known.count(top) == 1 and len(known) > 1 else None
        rows.append((name, [form(v) for v in values], at))

    summaries = [record.summary for record in records]
    add("mean IoU (fg)", [s["val_miou_fg"] for s in summaries], _score, better=True)
    rows.append(("95 % interval", ["{:.3f} to {:.3f}".format(*s["val_miou_fg_interval"]) for s in summaries], None))
    add("mean IoU (keras)", [s["val_miou_keras"] for s in summaries], _score, better=True)
    add("pixel accuracy", [s["accuracy"] for s in summaries], percent, better=True)
    if _same_classes(records):
        for name in records[0].classes.scored_names[:_MOST_CLASSES]:
            add(f"IoU {name}", [s["iou"].get(name) for s in summaries], _score, better=True)
    add("best epoch", [s["best_epoch"] for s in summaries], str)
    add("epochs", [s["epochs"] for s in summaries], str)
    add("parameters", [s.get("parameters") for s in summaries], _counted)
    add("images per second", [s.get("images_per_second") for s in summaries], _counted)
    add("time", [s.get("seconds") for s in summaries], lambda v: "–" if v is None else clock(v))
    return rows


def _compared_charts(records: Sequence[Record]) -> list[Chart]:
    """Charts with a line per run."""
    epochs = sorted({row["epoch"] for record in records for row in record.rows})

    def over(value: Callable[[dict[str, Any]], float | None]) -> list[Series]:
        found = [{row["epoch"]: value(row) for row in record.rows} for record in records]
        return [
            Series(r.name, [values.get(epoch) for epoch in epochs]) for r, values in zip(records, found, strict=True)
        ]

    charts = [
        line_chart("Validation mean IoU (fg)", epochs, over(lambda row: row["val_miou_fg"])),
        line_chart(
            "Training loss",
            epochs,
            over(lambda row: row["train_loss"]),
            ".4f",
            note="Losses of different terms do not compare.",
        ),
        line_chart("Gradient norm, mean", epochs, over(lambda row: row.get("gradient_norm")), ".3g", logarithmic=True),
        line_chart("Learning rate", epochs, over(lambda row: row["learning_rate"]), ".2e"),
    ]
    names = records[0].classes.scored_names
    if _same_classes(records) and len(names) <= _MOST_LINES:
        charts += [
            line_chart(f"IoU {name}", epochs, over(lambda row, k=k: row["iou"][k])) for k, name in enumerate(names)
        ]
    return [chart for chart in charts if chart is not None]


def _differing(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Settings, versions and devices that are not the same in all runs, with their values."""
    rows = []
    for name in (f.name for f in fields(Config)):
        values = [_setting(getattr(record.config, name)) for record in records]
        if len(set(values)) > 1:
            rows.append((_option(name), values))
    known = [record.versions for record in records]
    for name in dict.fromkeys(name for versions in known if all(known) for name in versions if name != "tiles"):
        values = [versions.get(name, "–") for versions in known]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _warnings(records: Sequence[Record]) -> list[str]:
    """Reasons why the runs do not compare."""
    tiles = {record.versions.get("tiles") for record in records}
    lines = []
    if len(tiles) > 1 and None not in tiles:
        lines.append("These runs were trained and validated on different tiles, so their scores do not compare.")
    if not _same_classes(records):
        lines.append("These runs have different classes, so their IoUs are means of different things.")
    return lines
