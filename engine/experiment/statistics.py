"""What a set of runs says about a configuration, and about the difference between two.

Two kinds of noise are told apart. *Between seeds*: another seed deals another split, other initial weights, another
order; its measure is the standard deviation over the runs. *Between source images*: other validation images would have
given another score; its measure is a bootstrap over source images (tiles of one image are not independent), on the
confusion matrix pooled over the runs, because big rock is in so few images that a mean of per-run scores would be
biased. Two configurations are compared on the same seeds with the same resampled images, so that what hard images take
from both cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.data import Classes
from engine.training.metrics import Scores, scores

DRAWS = 2000


@dataclass(frozen=True, eq=False)
class Outcome:
    """A measured run. confusion: int64 (N, C, C), one matrix per validation tile.  groups: str (N,), the tiles' source
    images.

    classes, absent: as `engine.training.metrics.scores` takes them.   revision: of the software that trained it.
    """

    seed: int
    confusion: np.ndarray
    groups: np.ndarray
    classes: Classes | None = None
    absent: tuple[int, ...] = ()
    revision: str = ""

    @property
    def scores(self) -> Scores:
        """The scores of this run alone."""
        return self.scores_of(self.confusion.sum(0))

    def scores_of(self, confusion: np.ndarray) -> Scores:
        """The scores of another matrix over the same classes."""
        return scores(confusion, self.classes, self.absent)


@dataclass(frozen=True)
class Summary:
    """A configuration over its seeds. mean, deviation: of the runs' fg scores (deviation is NaN for one run).  pooled:
    the scores of the pooled
    confusion matrix.  interval: 95 % bootstrap interval of pooled.miou_fg over source images.
    """

    runs: int
    mean: float
    deviation: float
    mean_keras: float
    pooled: Scores
    interval: tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """Pooled fg of one configuration minus another's on their common seeds, with its 95 % interval from paired
    resampling.
    """

    seeds: int
    value: float
    interval: tuple[float, float]

    @property
    def clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


def summarise(outcomes: list[Outcome], draws: int = DRAWS) -> Summary:
    """The summary of one configuration's runs (at least one)."""
    single = np.array([o.scores.miou_fg for o in outcomes])
    keras = float(np.mean([o.scores.miou_keras for o in outcomes]))
    counts = _by_group(outcomes, _group_index(outcomes))
    deviation = float(single.std(ddof=1)) if len(single) > 1 else float("nan")
    pooled = outcomes[0].scores_of(counts.sum(0))
    return Summary(
        len(outcomes), float(single.mean()), deviation, keras, pooled, _interval(_resampled(counts, draws, outcomes[0]))
    )


def difference(ours: list[Outcome], baseline: list[Outcome], draws: int = DRAWS) -> Difference | None:
    """ours minus baseline on the seeds that both have; None where they have none in common."""
    seeds = {o.seed for o in ours} & {o.seed for o in baseline}
    if not seeds:
        return None
    sides = [[o for o in side if o.seed in seeds] for side in (ours, baseline)]
    index = _group_index(sides[0] + sides[1])
    ours_counts, baseline_counts = (_by_group(side, index) for side in sides)
    first, second = ours[0], baseline[0]
    value = first.scores_of(ours_counts.sum(0)).miou_fg - second.scores_of(baseline_counts.sum(0)).miou_fg
    values = _resampled(ours_counts, draws, first) - _resampled(baseline_counts, draws, second)
    return Difference(len(seeds), value, _interval(values))


def _group_index(outcomes: list[Outcome]) -> dict[str, int]:
    """A number for every source image that any of the runs was validated on."""
    return {name: k for k, name in enumerate(sorted({str(g) for o in outcomes for g in o.groups}))}


def _by_group(outcomes: list[Outcome], index: dict[str, int]) -> np.ndarray:
    """int64 (G, C, C): the confusion matrices of all runs, added up by source image."""
    classes = outcomes[0].confusion.shape[1]
    counts = np.zeros((len(index), classes, classes), np.int64)
    for outcome in outcomes:
        np.add.at(counts, [index[str(g)] for g in outcome.groups], outcome.confusion)
    return counts


def _resampled(counts: np.ndarray, draws: int, outcome: Outcome) -> np.ndarray:
    """fg of `draws` resamplings of the groups with replacement; the same resamplings for the same number of groups."""
    groups, classes = counts.shape[:2]
    picks = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    matrices = (picks @ counts.reshape(groups, -1)).reshape(draws, classes, classes)
    return np.array([outcome.scores_of(m).miou_fg for m in matrices])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
