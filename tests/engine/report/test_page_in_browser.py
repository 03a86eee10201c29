"""The page in a browser: slider, run switch and charts by mouse and keyboard, contrast in both colour schemes,
alternative texts, a phone's width, and no message on the console.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.report import command
from tests.support import browser as chromium
from tests.support.tiny_runs import flags, run

pytestmark = pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium on this machine to look at the page")

LEFT, RIGHT, END, HOME = ("ArrowLeft", 37), ("ArrowRight", 39), ("End", 35), ("Home", 36)
SHOWN = ".run:not([hidden])"
# Text and its colours, as drawn: what is below a background that lets it through is mixed in. Lines of charts are
# compared with the card they lie on.
CONTRAST = """(() => {
  const parse = text => {
    const numbers = text.match(/-?[\\d.]+(?:e-?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map(n => scale * n), numbers.length > 3 ? numbers[3] : 1];
  };
  const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const light = colour => {
    const [r, g, b] = colour.map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const bad = [];
  let texts = 0, lines = 0;
  for (const e of document.querySelectorAll("body *")) {
    const style = getComputedStyle(e), ground = behind(e);
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!e.getClientRects().length || style.visibility === "hidden") continue;
    if (own && !["SCRIPT", "STYLE"].includes(e.tagName)) {
      texts++;
      const colour = parse(e instanceof SVGElement ? style.fill : style.color);
      const found = ratio(over(colour, ground), ground);
      if (found < 4.5) bad.push(`${found.toFixed(2)}: ${e.outerHTML.slice(0, 90)}`);
    }
    if (e instanceof SVGElement && e.classList.contains("line")) {
      lines++;
      if (ratio(parse(style.stroke), ground) < 3) bad.push(`line ${style.stroke}: ${e.outerHTML.slice(0, 60)}`);
    }
  }
  return { bad, texts, lines };
})()"""


@pytest.fixture(scope="module")
def folders(whole: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, of two epochs and of one."""
    out = tmp_path_factory.mktemp("second") / "second"
    assert run(flags(tiles, out, "--learning-rate=0.01", epochs=1)) == 0
    return [whole, out]


@pytest.fixture(scope="module")
def pages(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of one run, and of both."""
    out = tmp_path_factory.mktemp("page") / "both.html"
    command.compare(folders, out, 2)
    return {"one": folders[0] / "report.html", "both": out}


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    with chromium.Browser() as opened:
        yield opened


def pixels(page: Any, folder: Path) -> np.ndarray:
    """The first tile of the run that is shown, as it is on the screen."""
    box = page.evaluate(
        f"(r => [r.left + scrollX, r.top + scrollY, r.width, r.height])"
        f"(document.querySelector('{SHOWN} .stack').getBoundingClientRect())"
    )
    x, y, width, height = box
    page.screenshot(folder / "tile.png", top=y, height=height)
    content = Image.open(io.BytesIO((folder / "tile.png").read_bytes())).convert("RGB")
    return np.asarray(content)[2 : round(height) - 2, round(x) + 2 : round(x + width) - 2].astype(int)


def layers(page: Any, folder: Path) -> list[np.ndarray]:
    """Its four layers, drawn by the browser one at a time at the same size."""
    found = []
    for k in range(4):
        page.evaluate(
            f"document.querySelectorAll('{SHOWN} .stack img').forEach((i, n) => i.style.visibility = n % 4 === {k} "
            "? 'visible' : 'hidden')"
        )
        page.evaluate(f"document.querySelectorAll('{SHOWN} .stack img').forEach(i => i.style.clipPath = 'none')")
        found.append(pixels(page, folder))
    page.evaluate(f"document.querySelectorAll('{SHOWN} .stack img').forEach(i => i.removeAttribute('style'))")
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and float(np.abs(a - b).mean()) < 1


def test_the_slider_moves_from_the_image_to_the_errors(
    browser: chromium.Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    """By the keyboard: what the screen shows at every quarter, and what a screen reader says."""
    page = browser.open(pages["one"])
    slider = f"document.querySelector('{SHOWN} .tile input')"
    first = pixels(page, tmp_path)
    image, truth, prediction, error = layers(page, tmp_path)
    assert not any(same(a, b) for a, b in itertools.combinations((image, truth, prediction, error), 2))
    assert same(first, image)
    page.evaluate(f"{slider}.focus()")
    names = ["image", "truth", "prediction", "error"]
    for k, (before, after) in enumerate(itertools.pairwise((image, truth, prediction, error))):
        assert page.evaluate(f"{slider}.getAttribute('aria-valuetext')") == names[k]
        page.press(*RIGHT)
        page.press(*RIGHT)
        shown = pixels(page, tmp_path)
        middle = shown.shape[1] // 2
        assert same(shown[:, : middle - 4], after[:, : middle - 4]), f"{names[k + 1]} on the left"
        assert same(shown[:, middle + 4 :], before[:, middle + 4 :]), f"{names[k]} on the right"
        said = page.evaluate(f"{slider}.getAttribute('aria-valuetext')")
        assert said == f"{names[k + 1]} in the left 50 %, {names[k]} in the rest"
        page.press(*RIGHT)
        page.press(*RIGHT)
        assert same(pixels(page, tmp_path), after)
    page.press(*RIGHT)
    assert page.evaluate(f"{slider}.value") == "3", "it ends there"
    page.press("2", 50)
    assert same(pixels(page, tmp_path), truth)
    page.press(*HOME)
    assert same(pixels(page, tmp_path), image)
    assert page.problems == []
    page.close()


def test_a_drag_and_the_buttons_move_one_tile_and_the_choice_all(
    browser: chromium.Browser, pages: dict[str, Path]
) -> None:
    page = browser.open(pages["both"])
    values = "[...document.querySelectorAll('.tile input')].map(s => Number(s.value))"
    page.click(f"{SHOWN} .tile input")
    found = page.evaluate(values)
    assert 1.4 < found[0] < 1.6, "the middle of the slider"
    assert set(found[1:]) == {0}
    page.click(f"{SHOWN} .tile .stops button:nth-child(3)")
    assert page.evaluate(values)[0] == 2
    page.click(f"{SHOWN} .layers label:nth-of-type(4)")
    found = page.evaluate(values)
    assert set(found) == {3}
    assert len(found) > 8, "also those of the other run"
    assert page.problems == []
    page.close()


def test_the_run_switch(browser: chromium.Browser, pages: dict[str, Path], folders: list[Path]) -> None:
    page = browser.open(pages["both"])
    names = command.distinct_names(folders)
    shown = f"[...document.querySelectorAll('{SHOWN}')].map(r => r.getAttribute('aria-label'))"
    assert page.evaluate(shown) == [f"Run {names[0]}"]
    page.click("#runs label:nth-of-type(2)")
    assert page.evaluate(shown) == [f"Run {names[1]}"]
    assert page.evaluate("location.hash") == "#run-1"
    page.press(*LEFT)
    assert page.evaluate(shown) == [f"Run {names[0]}"], "the arrow keys switch, too"
    top = f"document.querySelector('{SHOWN} [data-part=classes]').getBoundingClientRect().top"
    page.evaluate(f"scrollBy(0, {top} - 20)")
    before = page.evaluate(top)
    assert abs(before - 20) < 2
    page.evaluate("document.querySelector('#runs input:checked').focus({preventScroll: true})")
    page.press(*RIGHT)
    assert page.evaluate(shown) == [f"Run {names[1]}"]
    assert abs(page.evaluate(top) - before) < 2, "the part that was in sight stays there"
    page.close()
    linked = browser.open(pages["both"].resolve().as_uri() + "#run-1")
    assert linked.evaluate(shown) == [f"Run {names[1]}"]
    assert linked.problems == []
    linked.close()


def test_a_chart_is_read_by_keyboard_and_mouse(
    browser: chromium.Browser, pages: dict[str, Path], folders: list[Path]
) -> None:
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    page = browser.open(pages["one"])
    texts = "[...c.querySelectorAll('.legend b')].map(b => b.textContent)"
    said = f"[...document.querySelectorAll('.chart')].map(c => {texts})"
    names = page.evaluate("[...document.querySelectorAll('.chart h3')].map(h => h.textContent)")
    at = names.index("Training loss and its terms")

    def values(row: dict[str, Any]) -> list[str]:
        return [f"{value:.4f}" for value in (row["train_loss"], *row["terms"].values())]

    assert page.evaluate(said)[at] == values(rows[1])
    page.evaluate(f"document.querySelectorAll('.chart')[{at}].focus()")
    page.press(*LEFT)
    assert page.evaluate(said)[at] == values(rows[0])
    assert page.evaluate(f"document.querySelectorAll('.chart .at')[{at}].textContent") == "epoch 1"
    page.press(*LEFT)
    page.press(*END)
    assert page.evaluate(said)[at] == values(rows[1])
    page.press(*HOME)
    page.evaluate("document.activeElement.blur()")
    assert page.evaluate(said)[at] == values(rows[1]), "the last epoch, when nobody points at one"
    page.evaluate(
        f"(svg => {{ const r = svg.getBoundingClientRect(); svg.dispatchEvent(new PointerEvent('pointermove', "
        f"{{clientX: r.left + 0.2 * r.width, clientY: r.top + 9}})); }})"
        f"(document.querySelectorAll('.chart')[{at}].querySelector('svg'))"
    )
    assert page.evaluate(said)[at] == values(rows[0])
    assert page.problems == []
    page.close()


@pytest.mark.parametrize("name", ["one", "both"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast_and_widths(browser: chromium.Browser, pages: dict[str, Path], name: str, dark: bool) -> None:
    page = browser.open(pages[name], dark=dark)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == dark
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in (1280, 390, 320):
        page.resize(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        outside = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && "
            "e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
        )
        assert outside == []
        found = page.evaluate(CONTRAST)
        assert found["bad"] == []
        assert found["texts"] > 150
        assert found["lines"] > 10
        small = page.evaluate(
            "[...document.querySelectorAll('.chart svg:not(.key)')].map(s => s.getBoundingClientRect().width)"
        )
        assert min(w for w in small if w) >= 0.7 * min(width, 400)
    assert page.problems == []
    page.close()


@pytest.mark.parametrize("name", ["one", "both"])
def test_what_a_screen_reader_needs(browser: chromium.Browser, pages: dict[str, Path], name: str) -> None:
    page = browser.open(pages[name])
    alts = page.evaluate("[...document.images].map(i => i.alt)")
    assert len(alts) >= 16
    assert all(alt.startswith("tile ") and len(alt) > 12 for alt in alts)
    assert page.evaluate("[...document.images].filter(i => !i.naturalWidth).length") == 0
    labels = page.evaluate("[...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute('aria-label'))")
    assert len(labels) >= 6
    assert all("epochs 1 to 2" in label or "epochs 1 to 1" in label for label in labels)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button, summary, [role=region]')].filter(e => !(e.getAttribute("
        "'aria-label') || e.textContent.trim() || e.closest('label')?.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate("document.title")
    page.close()


def test_the_page_says_all_without_scripts(pages: dict[str, Path]) -> None:
    """Every run, and all layers of every tile; the script only hides."""
    text = pages["both"].read_text(encoding="utf-8")
    before = text.partition("<script>")[0]
    assert before.count('class="run"') == 2
    assert " hidden>" not in before
    assert "<noscript>" in before
