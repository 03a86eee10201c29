"""Pictures of a gradient check for a page: the step-size curve as SVG, gradients and kinks as PNG in base64."""

from __future__ import annotations

import io
import re

import numpy as np

from autograd.gradcheck import StepCurve
from autograd.html import address

INK, BLUE, ORANGE, GREEN, RED, GREY = "#1b1f24", "#2563a8", "#c2571a", "#2b8a4b", "#b3261e", "#8a929c"


def curve_svg(curve: StepCurve, salt: str, kinked: bool = False) -> str:
    """log-log: the error of the plain difference against the step, the two laws behind the V, the extrapolated value's
    error, ours.

    kinked: at a kink the plain difference tends to the mean of both slopes, which the handwritten gradient need not be:
        its line is left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": salt,
            "font.size": 10,
            "axes.edgecolor": GREY,
            "font.family": "sans-serif",
        }
    ):
        figure, axes = pyplot.subplots(figsize=(5.6, 3.5))
        shown = np.isfinite(curve.error) & (curve.error > 0)
        steps = curve.steps[shown]
        error = curve.error[shown]
        floor = 1e-17
        if len(steps):
            axes.loglog(steps, error, "o-", color=BLUE, ms=3, lw=1.2, label="plain central difference")
            low = max(floor, float(error.min()) / 30)
        else:
            low = floor
        axes.loglog(curve.steps, curve.roundoff, ":", color=GREY, lw=1.2, label="round-off ~ 1/h")
        truncation = _truncation(steps, error)
        if truncation is not None:
            axes.loglog(curve.steps, truncation * curve.steps**2, "--", color=GREY, lw=1.2, label="truncation ~ h²")
        axes.axhline(max(curve.estimate, floor), color=GREEN, lw=1.4, label="estimated error, extrapolated")
        if not kinked:
            axes.axhline(max(curve.analytic_error, floor), color=RED, lw=1.4, ls="-.", label="handwritten gradient")
        if curve.chosen:
            axes.axvline(curve.chosen, color=ORANGE, lw=1, label="chosen step")
        low = max(
            floor,
            min(
                low,
                curve.estimate / 3 if curve.estimate > 0 else low,
                curve.analytic_error / 3 if curve.analytic_error > 0 else low,
            ),
        )
        top = max([curve.analytic_error * 10, 1.0, *(error[:1] * 10 if len(error) else [])])
        axes.set(xlabel="step h", ylabel="relative error", ylim=(low, top), xlim=(curve.steps.min(), curve.steps.max()))
        axes.grid(True, color="#e5e8ec", lw=0.6)
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncol=2)
        figure.patch.set_alpha(0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


def _truncation(steps: np.ndarray, error: np.ndarray) -> float | None:
    """c of c h^2 through the curve where it falls as h^2;
    None where it does not (linear functions have no truncation).
    """
    for k in range(len(steps) - 3):
        slope = np.log(error[k] / error[k + 3]) / np.log(steps[k] / steps[k + 3])
        if 1.7 < slope < 2.3 and error[k + 3] > 1e-13:
            return float(error[k + 3] / steps[k + 3] ** 2)
    return None


def montage(array: np.ndarray, is_filter: bool = False, gap: float = np.nan) -> np.ndarray:
    """Any array as one picture, planes side by side with a gap: images (N, H, W, C) as N x C planes, filters (R, S, C,
    K) as C x K planes.
    """
    array = np.asarray(array, np.float64)
    if array.ndim <= 1:
        return array.reshape(1, -1)
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        planes = array[None]
    elif array.ndim == 4:
        planes = array.transpose(2, 3, 0, 1) if is_filter else array.transpose(0, 3, 1, 2)
    else:
        planes = array.reshape(1, -1, *array.shape[-2:])
    rows, columns, h, w = planes.shape
    picture = np.full((rows * (h + 1) - 1, columns * (w + 1) - 1), gap)
    for i in range(rows):
        for j in range(columns):
            picture[i * (h + 1) : i * (h + 1) + h, j * (w + 1) : j * (w + 1) + w] = planes[i, j]
    return picture


def signed_png(array: np.ndarray, largest: float, is_filter: bool = False) -> str:
    """Blue negative, white 0, red positive, up to +-largest; a data: address."""
    return _png(montage(array, is_filter) / (2 * (largest or 1.0)) + 0.5, "RdBu_r")


def kink_png(distance: np.ndarray) -> str:
    """Per output the distance to the nearest kink along the direction: red at the point itself, pale yellow where none
    was seen.
    """
    with np.errstate(divide="ignore"):
        level = 1 - (np.log10(montage(distance, gap=-1.0).clip(1e-7, None)) + 7) / 6
    level = np.where(
        montage(distance, gap=np.nan) == np.inf,
        0.0,
        np.where(np.isnan(montage(distance, gap=np.nan)), np.nan, level.clip(0.15, 1)),
    )
    return _png(level, "YlOrRd")


def _png(values: np.ndarray, colours: str) -> str:
    """values in [0, 1] (nan: a gap) through a colour map; small pictures, enlarged by the page without smoothing."""
    import matplotlib
    from PIL import Image

    rgba = matplotlib.colormaps[colours](np.nan_to_num(values, nan=0.0).clip(0, 1), bytes=True)
    rgba[np.isnan(values)] = (216, 221, 227, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", optimize=True)
    return address(buffer.getvalue())
