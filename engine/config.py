"""Every setting of a training run, in one dataclass: the command line, config.toml and checkpoints all speak it."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from engine.errors import InputError, quoted, read_bytes, reading
from kernels.loss.spec import TERMS

PRESETS = ("tiny", "small", "report")


class ConfigError(InputError):
    """A setting is unknown or out of range; the message names it, what came and what was expected."""


@dataclass(frozen=True)
class Config:
    """Settings of a training run. Defaults are the preset 'tiny'.

    Raises ConfigError, which names the setting, for a value of another type or outside its range.
    """

    GROUPS: ClassVar[dict[str, str]] = {
        "preset": "preset and data",
        "epochs": "training",
        "encoder": "network",
        "margin": "loss",
        "learning_rate": "optimisation",
        "flip_horizontal": "augmentation",
    }

    preset: Literal["tiny", "small", "report"] = "tiny"
    """The set of defaults: tiny (width 8, trains in minutes), small (width 16), report (width 32, the report's
    network).
    """
    data: str = "synthetic"
    """'synthetic' (built-in Mars-like tiles), an .npz file in the original form, or a folder of images and masks
    (docs/data.md).
    """
    masks: str = ""
    """The folder that holds the masks, if --data is a folder of images only. An image and its mask have the same name.
    """
    classes: str = "auto"
    """The classes: 'mars' (five classes, 0 unlabelled), a number (1: binary, one logit; at most 256), or a file that
    names them. 'auto' takes classes.toml next to the images, else 'mars'.
    """
    ignore: str = ""
    """Mask values that the loss and the scores ignore, like 255 or 0,255, or 'none'. By default the classes decide (255
    unless it is a class).
    """
    split: Literal["image", "tile", "folder"] = "image"
    """The unit that is held out together: all tiles of a source image (where known), a tile (for comparison only: it
    leaks), or a folder.
    """
    clean: Literal["auto", "remove", "report", "off"] = "auto"
    """Treatment of samples that share one drawn mask: 'remove' drops them, 'report' counts them. 'auto' removes them
    from .npz files and built-in tiles by the rule of the original file (one mask on all of them), and reports them
    elsewhere.
    """
    crop: tuple[int, int] = (0, 0)
    """Height and width of the random crops to train on, multiples of 8. Evaluation uses overlapping tiles of that size.
    0 0: whole images.
    """
    tiles: int = 2000
    """Number of tiles that 'synthetic' generates."""
    epochs: int = 12
    """Passes over the training tiles."""
    batch: int = 16
    """Tiles per step."""
    width: int = 8
    """Channels of the first stage; a multiple of 4. Cost grows with its square."""
    seed: int = 0
    """Seed for the split, the initial weights, the batches, augmentation and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto takes CUDA if CuPy works (AREOGRAD_DEVICE sets the same)."""
    precision: Literal["float32", "tf32", "bf16", "float16"] = "float32"
    """Precision of the convolutions' operands on CUDA: exact, or rounded for the tensor cores. Weights, activations and
    sums stay float32; float16 scales the loss.
    """
    cuda_graph: bool = False
    """Capture forward and backward once per batch shape and replay them as a CUDA graph. Needs CUDA and dropout 0."""
    val_fraction: float = 0.2
    """Share of the tiles that are held out for validation, by source image."""
    folds: int = 0
    """Number of parts for cross-validation, the same parts for every seed; --fold is held out. 0: --val-fraction
    decides.
    """
    fold: int = 0
    """Number of the part that is held out, from 0."""

    encoder: Literal["residual+inception", "residual", "plain"] = "residual+inception"
    """Blocks of the encoder's stages."""
    bottleneck: Literal["aspp+psa+spp", "aspp+psa", "psa", "mhsa", "none"] = "aspp+psa+spp"
    """Blocks at the lowest resolution."""
    skips: Literal["gated", "plain"] = "gated"
    """Skip connections: with attention gates, or plain."""
    gate: Literal["attn1", "attnC", "blend", "gau"] = "attn1"
    """Kind of attention gate."""
    order: Literal["serial", "parallel"] = "serial"
    """Strip pyramid pooling after the polarized attention, or in parallel with it."""
    psa_mode: Literal["sequential", "parallel"] = "sequential"
    """Branches of the polarized attention: one after the other, or in parallel."""
    five: Literal["5x5", "3x3+3x3"] = "5x5"
    """The wide branch of the inception block."""
    preactivation: bool = False
    """Put norm and ReLU before the convolutions of residual blocks."""
    fppm: bool = False
    """Add feature pyramid pooling after the last two encoder stages."""
    dropout: float = 0.1
    """Dropout probability after the bottleneck."""

    margin: float = 0.4
    """Coefficient of the margin loss. It is negative where the right class leads, down to minus the class weight, so
    the sum of all terms may be negative, too.
    """
    dice: float = 0.2
    """Coefficient of the weighted Dice loss."""
    focal: float = 0.2
    """Coefficient of the focal loss."""
    iou: float = 0.2
    """Coefficient of the soft IoU loss."""
    cross_entropy: float = 0.0
    """Coefficient of the cross-entropy."""
    lovasz: float = 0.0
    """Coefficient of the Lovasz-softmax loss."""
    tversky: float = 0.0
    """Coefficient of the Tversky loss."""
    focal_tversky: float = 0.0
    """Coefficient of the focal Tversky loss."""
    generalized_dice: float = 0.0
    """Coefficient of the generalized Dice loss."""
    mcc: float = 0.0
    """Coefficient of the loss by Matthews' correlation."""
    jaccard_metric: float = 0.0
    """Coefficient of the IoU loss of soft labels (see label_smoothing)."""
    dice_semimetric: float = 0.0
    """Coefficient of the Dice loss of soft labels (see label_smoothing)."""
    top_k: float = 0.0
    """Coefficient of the cross-entropy of the hardest pixels."""
    boundary: float = 0.0
    """Coefficient of the boundary loss, which counts in pixels: 0.01 is a lot."""
    hardest: float = 0.25
    """Share of a batch's labelled pixels that counts as hardest (--top-k)."""
    alpha: float = 0.3
    """Weight of false positives in the Tversky losses."""
    beta: float = 0.7
    """Weight of false negatives in the Tversky losses."""
    gamma: float = 2.0
    """Exponent of the focal losses."""
    smooth: float = 1.0
    """Number of pixels added to the numerator and the denominator of Dice and IoU."""
    label_smoothing: float = 0.0
    """Amount of label smoothing towards all classes alike, in the cross-entropies and the losses of soft labels.
    """
    class_weights: Literal["none", "inverse", "median", "sqrt", "enet", "effective"] = "median"
    """Scheme of the class weights, by which rare classes weigh more; median is median-frequency balancing."""
    weight_cap: float = 0.0
    """The largest class weight is at most this multiple of the smallest; 0 sets no bound."""
    background: Literal["mask", "train", "mixed"] = "mask"
    """Reading of class 0: 'mask', unlabelled, neither learnt nor predicted; 'train', an ordinary class (the report's
    literal reading); 'mixed', an ordinary class to all terms but IoU and margin, which leave it out.
    """

    learning_rate: float = 2e-3
    """Peak learning rate; the schedule is a linear warm-up, then a cosine."""
    final_rate: float = 1e-5
    """Learning rate at the end of the schedule."""
    warmup: float = 0.05
    """Share of the steps with a rising learning rate."""
    weight_decay: float = 1e-2
    """Decoupled weight decay; biases and normalisation have none."""
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    average: float = 0.999
    """Decay of the moving average of the weights, which is the model that is evaluated; 0 keeps none."""
    patience: int = 40
    """Epochs without a better val mIoU before stopping; 0 never stops early."""
    rare_share: float = 0.12
    """Share of each batch drawn from tiles with a rare class."""

    flip_horizontal: float = 0.5
    """Probability of a horizontal flip."""
    flip_vertical: float = 0.5
    """Probability of a vertical flip."""
    affine: float = 0.5
    """Probability of rotation, scaling and shift together."""
    rotate: float = 15.0
    """Largest rotation in degrees."""
    scale: float = 1.25
    """Largest zoom; the smallest is 1 / scale."""
    shift: float = 0.1
    """Largest shift as a share of the tile."""
    photometric: float = 0.5
    """Probability of contrast, brightness and gamma together."""
    contrast: float = 1.25
    """Largest contrast factor; the smallest is 1 / contrast."""
    brightness: float = 0.1
    """Largest addition to grey levels in [0, 1]."""
    gamma_range: float = 1.4
    """Largest gamma; the smallest is 1 / gamma_range."""
    paste: float = 0.0
    """Share of the tiles onto which a component of a rare class is pasted (copy-paste)."""
    cutmix: float = 0.0
    """Share of the tiles that get a rectangle of another tile of the batch (CutMix)."""
    flips_only: float = 0.15
    """Share of the last epochs with flips only: nothing else is moved, recoloured or mixed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), field.type)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name}: got {quoted(value)}, expected {low:g} to {high:g}")
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise ConfigError(
                f"folds, fold: got {self.folds} and {self.fold}, expected at least 2 folds and a number below that, "
                "or 0 and 0"
            )
        if 0 < self.weight_cap < 1:
            raise ConfigError(
                f"weight_cap: got {self.weight_cap:g}, expected at least 1 (the largest weight over the smallest), or "
                "0 for no bound"
            )
        if self.width % 4:
            raise ConfigError(
                f"width: got {self.width}, expected a multiple of 4 (the inception block has four branches)"
            )
        if self.crop != (0, 0) and any(side < 8 or side > 8192 or side % 8 for side in self.crop):
            raise ConfigError(
                f"crop: got {self.crop[0]} {self.crop[1]}, expected multiples of 8 from 8 to 8192, or 0 0 (whole "
                "images)"
            )
        if self.cuda_graph and self.dropout:
            raise ConfigError(
                f"cuda_graph: needs dropout 0, got {self.dropout} (a captured mask would be the same in every step)"
            )
        if not any(self.loss_terms().values()):
            raise ConfigError(f"loss: all coefficients are 0, expected at least one of {', '.join(TERMS)} above 0")

    def loss_terms(self) -> dict[str, float]:
        """The coefficients that are not 0, by term."""
        return {name: getattr(self, name) for name in TERMS if getattr(self, name)}


_INF = math.inf
_PAIR = "tuple[int, int]"
MOST_TOML = 1 << 16  # bytes; a config.toml takes some thousand,
_MOST_LINE = 5000  # of a line: the parser's time grows with the square of the dots in a name
_SHARES = (
    "dropout",
    "hardest",
    "label_smoothing",
    "rare_share",
    "flip_horizontal",
    "flip_vertical",
    "affine",
    "photometric",
    "paste",
    "cutmix",
    "flips_only",
    "warmup",
)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_SHARES, (0.0, 1.0)),
    **dict.fromkeys((*TERMS, "smooth", "weight_decay", "clip", "patience", "weight_cap"), (0.0, _INF)),
    **dict.fromkeys(("scale", "contrast", "gamma_range"), (1.0, 10.0)),
    "tiles": (20, 1e6),
    "epochs": (1, 1e6),
    "batch": (2, 1e5),
    "width": (4, 1024),
    "seed": (0, 2**63 - 1),
    "val_fraction": (0.01, 0.9),
    "folds": (0, 100),
    "fold": (0, 99),
    "dropout": (0.0, 0.95),
    "gamma": (0.0, 20.0),
    "alpha": (0.0, 100.0),
    "beta": (0.0, 100.0),
    "learning_rate": (0.0, 10.0),
    "final_rate": (0.0, 10.0),
    "average": (0.0, 0.999999),
    "rotate": (0.0, 180.0),
    "shift": (0.0, 1.0),
    "brightness": (0.0, 1.0),
}

_PRESET_CHANGES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {"width": 16, "batch": 32, "epochs": 60},
    "report": {"width": 32, "batch": 32, "epochs": 120, "learning_rate": 1e-3},
}


def preset(name: str) -> Config:
    """The settings of a preset; ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"preset: got {quoted(name)}, expected one of {', '.join(PRESETS)}")
    return Config(preset=name, **_PRESET_CHANGES[name])  # type: ignore[arg-type]


def presets_explained() -> str:
    """What each preset sets, a line each, in the units of the command line."""
    names = sorted({name for changes in _PRESET_CHANGES.values() for name in changes})
    rows = [
        f"  {name:<8}" + "  ".join(f"--{key.replace('_', '-')} {getattr(preset(name), key):g}" for key in names)
        for name in PRESETS
    ]
    return "\n".join(
        ["Presets, which differ in these settings (the defaults above are those of the chosen one):", *rows]
    )


def from_dict(values: dict[str, Any], source: str = "config") -> Config:
    """A Config from a flat dictionary; settings that it leaves out come from its preset. Raises ConfigError for unknown
    names or bad values.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: got {quoted(values)}, expected settings by name")
    known = {field.name for field in dataclasses.fields(Config)}
    unknown = sorted(values.keys() - known, key=str)
    if unknown:
        raise ConfigError(f"{source}: unknown setting {quoted(unknown[0])}, expected one of {', '.join(sorted(known))}")
    whole = {f.name for f in dataclasses.fields(Config) if f.type == "float"}
    pairs = {f.name for f in dataclasses.fields(Config) if f.type == _PAIR}
    with reading(ConfigError, f"{source}: cannot be used"):
        base = preset(values.get("preset", "tiny"))
        values = {k: tuple(v) if k in pairs and isinstance(v, list) else v for k, v in values.items()}
        values = {
            k: float(v) if k in whole and isinstance(v, int) and not isinstance(v, bool) else v
            for k, v in values.items()
        }
        try:
            return dataclasses.replace(base, **values)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None


def read_toml(path: Path) -> Config:
    """Read a config.toml. Raises ConfigError with one line when it is missing, no TOML, or holds unknown or bad
    settings.
    """
    with reading(ConfigError, f"--config {path}: cannot be read"):
        text = read_bytes(path, MOST_TOML)
    return from_dict(parse_toml(text, f"--config {path}"), f"--config {path}")


def parse_toml(text: bytes, source: str) -> dict[str, Any]:
    """A TOML file's values. Raises ConfigError with one line."""
    with reading(ConfigError, f"{source}: no valid TOML:"):
        if max(map(len, text.splitlines()), default=0) > _MOST_LINE:
            raise ValueError(f"a line of more than {_MOST_LINE} bytes")
        return tomllib.loads(text.decode("utf-8"))


def to_toml(config: Config) -> str:
    """The settings as TOML text, readable by `read_toml`."""
    import tomli_w

    return tomli_w.dumps(dataclasses.asdict(config))


def _check_type(name: str, value: Any, annotation: Any) -> None:
    text = str(annotation)
    if text.startswith("Literal"):
        choices = [part.strip(" '\"") for part in text[len("Literal[") : -1].split(",")]
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{name}: got {quoted(value)}, expected one of {', '.join(choices)}")
        return
    if text == _PAIR:
        if (
            not isinstance(value, tuple)
            or len(value) != 2
            or not all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        ):
            raise ConfigError(f"{name}: got {quoted(value)}, expected two whole numbers")
        return
    expected = {"int": int, "float": (int, float), "str": str, "bool": bool}[text]
    if not isinstance(value, expected) or (isinstance(value, bool) and text != "bool"):
        raise ConfigError(f"{name}: got {quoted(value)}, expected {'a number' if text == 'float' else text}")
    if text == "float" and not math.isfinite(value):
        raise ConfigError(f"{name}: got {quoted(value)}, expected a finite number")
