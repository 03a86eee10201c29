"""What notebooks show of Tensors, modules and gradient checks: closed elements, escaped text, the right numbers."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layers
from autograd import Function, Tensor, gradcheck, ops
from autograd.html import curves, details, picture, table, tag
from tests.support.html_checks import read

EVIL = '<script>alert("x")</script> & \'"'


def image_of(attributes: dict[str, Any]) -> np.ndarray:
    """The pixels of an image within the page."""
    kind, _, content = attributes["src"].partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_text_and_attributes_are_escaped() -> None:
    piece = tag("p", EVIL, tag("b", EVIL, title=EVIL), stroke_width=2, class_="x")
    found = read(piece)
    assert found.elements == [("p", {"stroke-width": "2", "class": "x"}), ("b", {"title": EVIL})]
    assert found.text == " ".join(f"{EVIL} {EVIL}".split())


@pytest.mark.parametrize("piece", [table([[EVIL]], [EVIL]), details(EVIL, EVIL), curves({EVIL: [1.0, 2.0]})])
def test_every_piece_escapes(piece: str) -> None:
    assert EVIL in read(piece).text


def test_a_picture_keeps_its_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    (attributes,) = read(picture(pixels, 50, EVIL)).of("img")
    np.testing.assert_array_equal(image_of(attributes), pixels)
    assert (attributes["width"], attributes["alt"]) == ("50", EVIL)


def test_a_table_of_a_tensor() -> None:
    found = read(Tensor(np.array([[1.5, -2.25], [np.nan, 4.0]], np.float32), requires_grad=True)._repr_html_())
    assert "Tensor (2, 2), float32, cpu, requires_grad" in found.text
    assert "min -2.25, mean 1.083, max 4, 1 of 4 NaN or infinite" in found.text
    assert found.text.endswith("1.5 -2.25 nan 4")


def test_the_corner_of_a_large_tensor() -> None:
    found = read(Tensor(np.arange(4 * 10 * 20).reshape(4, 10, 20))._repr_html_())
    assert "[0, :, :]" in found.text
    rows = [parent for (name, _), parent in zip(found.elements, found.parents, strict=True) if name == "tr"]
    assert len(rows) == 7
    assert " 107 … … …" in found.text  # row 5 ends, the row of dots begins
    assert "800" not in found.text
    assert read(Tensor(np.arange(300))._repr_html_()).text.endswith("0 1 2 3 4 5 6 7 …")
    assert read(Tensor(2.5)._repr_html_()).text == "Tensor (), float32, cpu 2.5"


@pytest.mark.parametrize(
    "values",
    [np.zeros((0, 3)), np.zeros((2, 0)), np.array([True, False]), np.full(3, np.nan), np.array(1j), np.zeros((1,) * 6)],
)
def test_every_tensor_has_a_form(values: np.ndarray) -> None:
    assert str(values.shape) in read(Tensor(values)._repr_html_()).text


def test_bytes_are_shown_as_they_are() -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 12, 1)).astype(np.uint8)
    found = read(Tensor(images)._repr_html_())
    shown = found.of("img")
    assert len(shown) == 8
    assert "the first 8 of 10" in found.text
    for k, attributes in enumerate(shown):
        np.testing.assert_array_equal(image_of(attributes), images[k, ..., 0])
        assert attributes["width"] == str(12 * 8)


def test_other_numbers_go_from_black_to_white() -> None:
    x = np.linspace(-1, 3, 8 * 8 * 3).reshape(1, 8, 8, 3).astype(np.float32)
    x[0, 0, 0, 0] = np.nan
    found = read(Tensor(x)._repr_html_())
    low = float(x[np.isfinite(x)].min())
    assert f"black is {low:.4g}, white is 3" in found.text
    (attributes,) = found.of("img")
    expected = np.round(255 * (np.nan_to_num(x[0], nan=low) - low) / (3 - low))
    np.testing.assert_allclose(image_of(attributes).astype(float), expected, atol=1)


def test_large_images_are_thinned_and_filters_are_no_images() -> None:
    (attributes,) = read(Tensor(np.zeros((1, 400, 1000, 1), np.float32))._repr_html_()).of("img")
    assert image_of(attributes).shape == (67, 167)
    assert read(Tensor(np.zeros((3, 3, 16, 3)))._repr_html_()).of("img") == []


class Odd(layers.Module):
    """A module that is around itself, with a name that must be escaped."""

    def __init__(self) -> None:
        self.parts = {EVIL: layers.Linear(2, 3), "norm": layers.BatchNorm2d(4)}
        self.around = self

    def extra_repr(self) -> str:
        return EVIL


def test_the_tree_of_a_module() -> None:
    net = Odd()
    net.freeze("parts.norm.*")
    found = read(net._repr_html_())
    assert f"Odd ({EVIL})" in found.text
    assert "around: Odd, which is around" in found.text
    assert f"parts.{EVIL}: Linear (2, 3) 9 parameters" in found.text
    assert "weight (3, 2) float32 parameter bias (3,) float32 parameter" in found.text
    assert "weight (4,) float32 parameter, frozen" in found.text
    assert "running_mean (4,) float32 buffer" in found.text
    assert [attributes.get("open") for attributes in found.of("details")] == ["open", None, None]


def test_every_module_of_the_network_is_in_its_tree() -> None:
    net = layers.UNet(classes=5, in_channels=1, size=(16, 16), width=4)
    found = read(net._repr_html_())
    assert len(found.of("b")) == len(list(net.named_modules()))
    shapes = [str(t.shape) for _, t in net.named_tensors()]
    cells = found.text
    assert all(shape in cells for shape in shapes)
    assert f"{net.parameter_count():,} parameters" in cells


class Wrong(Function):
    """x^2 with one wrong entry in its gradient."""

    def forward(self, x: Any) -> Any:
        self.save(x)
        return x * x

    def backward(self, dy: Any) -> Any:
        gradient = 2 * self.saved[0] * dy
        gradient[1, 2] *= 1.5
        return gradient


def test_a_gradient_check() -> None:
    x = Tensor(np.random.default_rng(0).normal(size=(3, 4)), requires_grad=True)
    passed = gradcheck(ops.exp, x)
    found = read(passed._repr_html_())
    assert found.text.startswith("PASS exp")
    for line in passed.table().splitlines()[2:]:
        assert " ".join(line.split()) in found.text
    failed = read(gradcheck(lambda x: Wrong()(x), x, name=EVIL)._repr_html_())
    assert failed.text.startswith(f"FAIL {EVIL}")
    assert "|analytic - numeric|" in failed.text
    assert "width: 100.0%" in "".join(a.get("style") or "" for a in failed.of("div"))


def test_curves_leave_out_what_is_not_finite() -> None:
    found = read(curves({"a": [1.0, np.nan, 3.0], "b": [2.0, 2.0, np.inf]}, width=100, height=50))
    a, b = (attributes["points"] for attributes in found.of("polyline"))
    assert a is not None
    assert a.split() == ["52.0,32.0", "92.0,8.0"]
    assert b is not None
    assert len(b.split()) == 2
    assert found.text == "— a — b a b 1 3 3"
    assert curves({"a": [np.nan]}) == ""
    assert read(curves({"a": [5.0]})).of("circle")[0]["cx"] == f"{(52 + 352) / 2:.1f}"
