"""The model card: one Markdown page that says what a network is, how to run it, what it scored and where it fails."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.build import network_options
from engine.config import Config, preset
from engine.export.graph import OPSET
from engine.training.checkpoint import Checkpoint
from engine.training.run_folder import known_summary
from kernels.core.modules import PREFIX, version
from layers import UNet

_WEAK = 0.5  # an IoU below it is named among the limits
_MOST = 20  # classes, up to which the confusion matrix is shown


@dataclass(frozen=True)
class Table:
    """Scores on one set of tiles.

    title: which tiles.  note: what else is to be known about them.  fg, keras, accuracy: figures, None where they are
    not known.  fg_interval: its 95 % interval.  over: what the interval is drawn over.  iou: by class, and
    iou_intervals, where they were measured.  confusion: counts, rows by truth, or None.
    """

    title: str
    note: str
    fg: float | None
    fg_interval: tuple[float, float] | None
    keras: float | None
    accuracy: float | None
    over: str
    iou: Mapping[str, float | None]
    iou_intervals: Mapping[str, Any]
    confusion: list[list[int]] | None = None


def recorded(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Table | None:
    """The scores that training has put into the checkpoint; None where there are none that can be read."""
    record = checkpoint.record
    fg = _number(record.get("val_miou_fg"))
    if fg is None:
        return None
    given = record.get("val_miou_fg_interval")
    interval = [_number(v) for v in given] if isinstance(given, list) and len(given) == 2 else [None]
    iou = record.get("iou")
    names = checkpoint.form.classes.scored_names
    return Table(
        "Validation tiles",
        _of_epoch(checkpoint, facts),
        fg,
        None if None in interval else (interval[0], interval[1]),  # type: ignore[arg-type]
        _number(record.get("val_miou_keras")),
        _number(record.get("accuracy")),
        f"{facts['interval_over']}s" if "interval_over" in facts else "source images, or tiles where none are known",
        {name: _number(iou.get(name)) for name in names} if isinstance(iou, dict) else {},
        {},
    )


def measured(checkpoint: Checkpoint, result: Mapping[str, Any]) -> list[Table]:
    """What `engine.evaluate.evaluate` has found, on all tiles and on those that share no source image with training."""
    tiles = result["tiles"]
    split = result["split"]
    name = {"val": "validation", "test": "test"}[split]
    shared = result.get("tiles_sharing_a_source_image_with_training", 0)
    note = _of_epoch(checkpoint, {}) if split == "val" else ""
    if shared:
        note = f"{shared} of them share a source image with training, so that this score may be too high."
    over = f"{result['interval_over']}s"
    found = [_measured(f"{tiles} {name} tiles", note, over, result)]
    if "without_them" in result:
        title = f"The {tiles - shared} {name} tiles that share no source image with training"
        found.append(_measured(title, "", over, result["without_them"]))
    return found


def _measured(title: str, note: str, over: str, figures: Mapping[str, Any]) -> Table:
    return Table(
        title,
        note,
        figures["miou_fg"],
        tuple(figures["miou_fg_interval"]),  # type: ignore[arg-type]
        figures["miou_keras"],
        figures["accuracy"],
        over,
        figures["iou"],
        figures["iou_intervals"],
        figures["confusion"],
    )


def _of_epoch(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> str:
    epoch = checkpoint.record.get("epoch")
    if not isinstance(epoch, int):
        return ""
    of = facts.get("epochs", checkpoint.config.epochs)
    return (
        f"These are the weights of epoch {epoch} of {of}. The same tiles chose it, so the score may be a little high."
    )


def _number(value: Any) -> float | None:
    """The value, if it is a finite number: records come from files of any content."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


def run_facts(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of the run that a checkpoint lies in, if it is about the same network; else nothing."""
    summary = known_summary(path.parent)
    same = all(
        name in record and summary.get(theirs) == record[name]
        for name, theirs in (("epoch", "best_epoch"), ("val_miou_fg", "val_miou_fg"))
    )
    if not same:
        return {}
    kinds = {"epochs": int, "train_tiles": int, "val_tiles": int, "interval_over": str, "notes": list}
    return {name: summary[name] for name, kind in kinds.items() if isinstance(summary.get(name), kind)}


def training_command(config: Config) -> str:
    """The command line that trains with these settings."""
    usual = preset(config.preset)
    words = ["--preset", config.preset]
    for field in dataclasses.fields(Config):
        value = getattr(config, field.name)
        option = field.name.replace("_", "-")
        if field.name == "preset" or value == getattr(usual, field.name):
            continue
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, tuple):
            words += [f"--{option}", *map(str, value)]
        else:
            words.append(f"--{option}={value}")
    return f"python -m engine.train {shlex.join(words)}"


def model_card(
    checkpoint: Checkpoint,
    files: Mapping[str, str],
    tables: list[Table],
    facts: Mapping[str, Any],
    licence: str = "",
    weights: str = "",
) -> str:
    """The card as Markdown.

    files: the file names by format, 'onnx', 'torch', 'safetensors'.  tables: the scores.  facts: see `run_facts`.
    licence: of the weights, where it is known.  weights: where they come from, if it is not from training with the
    checkpoint's settings.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=False, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"plain": _plain, "figure": _figure, "between": _between}
    form = checkpoint.form
    config = checkpoint.config
    classes = form.classes
    return environment.from_string(_TEMPLATE).render(
        form=form,
        config=config,
        classes=classes,
        normalisation=checkpoint.normalisation,
        parameters=checkpoint.net.parameter_count(),
        files=files,
        tables=tables,
        facts=facts,
        licence=licence,
        weights=weights,
        command=training_command(config),
        twin=_twin_options(checkpoint),
        opset=OPSET,
        prefix=PREFIX,
        version=version(),
        kind={1: "grey", 3: "RGB"}[form.channels],
        opened=_opened(form.channels, form.dtype),
        formula=_formula(checkpoint),
        matrices={t.title: _shares(checkpoint, t.confusion) for t in tables if t.confusion and len(classes) <= _MOST},
        columns=[name for label, name in enumerate(classes.names) if label not in checkpoint.barred],
        rows=[_row(checkpoint, label) for label in range(len(classes))],
        unlabelled=classes.unlabelled == 0 and classes.background(config.background) == "mask",
        limits=_limits(checkpoint, tables),
    )


def _twin_options(checkpoint: Checkpoint) -> str:
    """The arguments of TwinUNet: those that are not its defaults, and dropout not at all, for it is off here."""
    import inspect

    usual = inspect.signature(UNet).parameters
    given = network_options(checkpoint.config, checkpoint.form)
    named = ("width", "classes", "in_channels")
    return ", ".join(
        f"{name}={value!r}"
        for name, value in given.items()
        if name != "dropout" and (name in named or value != usual[name].default)
    )


def _opened(channels: int, dtype: str) -> str:
    """The expression that reads one tile with Pillow."""
    if dtype == "uint8":
        mode = "L" if channels == 1 else "RGB"
        return f'np.asarray(Image.open("tile.png").convert("{mode}"))'
    return f'np.asarray(Image.open("tile.tif"), np.{dtype})'


def _formula(checkpoint: Checkpoint) -> str:
    """The standardised levels of a PyTorch tensor `x` (N, C, H, W) of levels, as Python."""
    given = checkpoint.normalisation

    def written(value: Any) -> str:
        return f"torch.tensor({list(value)}).view(-1, 1, 1)" if isinstance(value, tuple) else repr(value)

    return f"((x - {given.low}) / {given.high - given.low} - {written(given.mean)}) / {written(given.std)}"


def _row(checkpoint: Checkpoint, label: int) -> tuple[Any, ...]:
    """(label, name, colour, mask values, whether it is predicted) of a class."""
    classes = checkpoint.form.classes
    values = [classes.values[label], *(value for value, of in classes.further if of == label)]
    predicted = "no" if label in checkpoint.barred else "yes"
    return label, classes.names[label], classes.colours[label], ", ".join(map(str, values)), predicted


def _shares(checkpoint: Checkpoint, confusion: list[list[int]]) -> list[list[str]]:
    """The rows of a confusion matrix: a class, the percentages of its pixels by prediction, and their number. Pixels
    without a label have no row, classes that are never predicted no column.
    """
    classes = checkpoint.form.classes
    rows = []
    for label, counts in enumerate(confusion):
        if label != classes.unlabelled:
            total = sum(counts)
            shown = [count for predicted, count in enumerate(counts) if predicted not in checkpoint.barred]
            shares = [f"{100 * count / total:.1f}" if total else "" for count in shown]
            rows.append([_plain(classes.names[label]), *shares, f"{total:,}"])
    return rows


def _limits(checkpoint: Checkpoint, tables: list[Table]) -> list[str]:
    """What the network cannot do, as far as it is known."""
    form = checkpoint.form
    config = checkpoint.config
    h, w = config.crop if config.crop != (0, 0) else form.size
    known = len(form.classes) - len(checkpoint.barred)
    lines = [
        f"It knows {known} classes. Every pixel gets one of them, whatever it shows.",
        f"Height and width must be multiples of 8. It was trained on {h} x {w} pixels; other sizes run, but were not "
        "scored.",
    ]
    if config.crop != (0, 0):
        lines.append(
            f"Areograd runs it on overlapping windows of {h} x {w} and averages their logits; one run over a larger "
            "image gives other labels."
        )
    if config.bottleneck == "mhsa":
        lines.append("Its positions are interpolated for other sizes than that of its training.")
    if form.absent:
        names = ", ".join(_plain(form.classes.names[label]) for label in form.absent)
        lines.append(f"Training had no pixel of {names}: never predicted.")
    if tables:
        weak = {name: value for name, value in tables[-1].iou.items() if value is not None and value < _WEAK}
        lines += [f"It is weak on {_plain(name)}: IoU {value:.3f}." for name, value in weak.items()]
    else:
        lines.append("These weights have not been scored.")
    return [
        *lines,
        "It is one run with one seed, and knows images like those that it was trained on. Other cameras, light and "
        "places were not tried.",
        "The softmax of its logits has not been checked for calibration: it ranks, but is no probability.",
        "It is made for research. No decision on which safety depends should rest on it alone.",
    ]


def _plain(text: Any) -> str:
    """Text as Markdown that shows it as it is, also in a table."""
    return re.sub(r"([\\`*_{}\[\]<>|#~$&])", r"\\\1", str(text))


def _figure(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def _between(interval: Any) -> str:
    return "" if interval is None else f" {interval[0]:.3f} to {interval[1]:.3f}"


_TEMPLATE = """\
# Model card: {{ config.preset }} U-Net, {{ classes.scored | length }} class{{ "es" if classes.scored | length > 1 }}

It gives every pixel of {{ kind }} tiles one of {{ columns | length }} classes. It is a U-Net of
{{ "{:,}".format(parameters) }} parameters (encoder {{ config.encoder }}, bottleneck {{ config.bottleneck }},
{{ config.skips }} skips, width {{ config.width }}), made with Areograd {{ version }}.
{% if weights %}

Its weights come from {{ weights | plain }}, not from the training below.
{% endif %}

## Use

{% if "onnx" in files %}
`{{ files.onnx }}` is an ONNX model (opset {{ opset }}). It takes levels as they are stored; batch, height and width
are free.

```python
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{{ files.onnx }}")
images = {{ opened }}[None]  # (batch, height, width{{ ", 3" if form.channels == 3 }}), {{ form.dtype }}
logits, labels = session.run(["logits", "labels"], {"images": images})
```

`labels` (batch, height, width) are uint8, the numbers of the classes below; `logits` (batch, height, width,
{{ classes | length }}) are float32. Names, colours and the standardisation are in the model's metadata, as JSON:
`json.loads(session.get_modelmeta().custom_metadata_map["classes"])`.

{% endif %}
{% if "torch" in files %}
`{{ files.torch }}` is a PyTorch state dict of `TwinUNet`, whose module needs nothing but PyTorch and may be copied.

```python
import numpy as np
import torch
from PIL import Image
from {{ prefix }}engine.export.twin import TwinUNet

net = TwinUNet({{ twin }})
net.load_state_dict(torch.load("{{ files.torch }}", weights_only=True))
levels = {{ opened }}.astype(np.float32)
x = torch.from_numpy(levels){{ "[None, None]" if form.channels == 1 else ".permute(2, 0, 1)[None]" }}  # (N, C, H, W)
with torch.inference_mode():
    logits = net.eval()({{ formula }})
```

{% endif %}
{% if "safetensors" in files %}
`{{ files.safetensors }}` holds the arrays by the names of `state_dict()`, filters as (height, width, in, out). Any
safetensors library reads it, and Areograd does:

```sh
python -m engine.evaluate {{ files.safetensors }} --data DATA
```

{% endif %}
## Classes

| label | name | colour | mask values | predicted |
|---|---|---|---|---|
{% for label, name, colour, values, predicted in rows %}
| {{ label }} | {{ name | plain }} | `{{ colour }}` | {{ values }} | {{ predicted }} |
{% endfor %}

{% if unlabelled %}
Label 0 means "unlabelled": it is neither learnt, nor predicted, nor scored.

{% endif %}
## Input

Tiles of {{ kind }} levels, {{ form.dtype }}. Levels from {{ normalisation.low }} to {{ normalisation.high }} are
brought to [0, 1], then standardised with the mean {{ normalisation.mean }} and the
standard deviation {{ normalisation.std }} of the training tiles.
{% if "onnx" in files %}
The ONNX model does this itself.
{% endif %}

## Data

{% if config.data == "synthetic" %}
{{ "{:,}".format(config.tiles) }} Mars-like tiles that Areograd draws (seed {{ config.seed }}); no camera took them.
{% else %}
`{{ config.data }}`: tiles of {{ form.size[0] }} x {{ form.size[1] }}.
{% endif %}
{% if facts.train_tiles is defined and facts.val_tiles is defined %}
{{ "{:,}".format(facts.train_tiles) }} tiles to train, {{ "{:,}".format(facts.val_tiles) }} to validate.
{% endif %}
{% for note in facts.notes | default([]) %}
{{ "\n" if loop.first }}- {{ note | plain }}
{% endfor %}

## Scores

{% if tables %}
IoU is intersection over union, from 0 to 1. `fg` is its mean over the scored classes, `keras` the reading of Keras's
MeanIoU. Intervals are 95 % percentile bootstrap intervals: how far a score would move with other images of the same
kind. They say nothing about other seeds.
{% else %}
These weights have not been scored. `python -m engine.export CHECKPOINT --evaluate val test` measures them, and fills in
this section.
{% endif %}
{% for table in tables %}

### {{ table.title }}

{% if table.note %}
{{ table.note }}

{% endif %}
| score | value | 95 % interval, drawn over {{ table.over }} |
|---|---|---|
| mean IoU, fg | {{ table.fg | figure }} |{{ table.fg_interval | between }} |
| mean IoU, keras | {{ table.keras | figure }} | |
| accuracy | {{ table.accuracy | figure }} | |
{% for name, value in table.iou.items() %}
| IoU, {{ name | plain }} | {{ value | figure }} |{{ table.iou_intervals.get(name) | between }} |
{% endfor %}
{% if table.title in matrices %}

Confusion, in percent of the pixels of each true class (rows), by what was predicted (columns):

| truth |{% for name in columns %} {{ name | plain }} |{% endfor %} pixels |
|---|{% for name in columns %}---|{% endfor %}---|
{% for row in matrices[table.title] %}
| {{ row | join(" | ") }} |
{% endfor %}
{% endif %}
{% endfor %}

## Limits

{% for line in limits %}
- {{ line }}
{% endfor %}

## Training

{% if weights %}
These settings were those of the checkpoint that the weights were put into:
{% else %}
A run with the same settings:
{% endif %}

```sh
{{ command }}
```

## Licence

{% if licence %}
Of the weights: {{ licence | plain }}. The program that made them is under Apache-2.0.
{% else %}
None is stated for the weights; that depends on the data they were trained on. The program that made them is under
Apache-2.0.
{% endif %}
"""
