"""The results of a GPU check as one self-contained page, check.html, and as a line for each part."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from html import escape
from pathlib import Path
from typing import Any

from bench.gpu_check import epochs

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 0.5rem 0 2rem; display: block; overflow-x: auto; }
th, td { padding: 0.15rem 0.7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child, td.text { text-align: left; white-space: normal; }
.failed, .cut { color: #c0392b; font-weight: 600; }
svg { max-width: 100%; height: auto; background: white; }
"""


def read(file: Path) -> Any:
    """The JSON of a file; None if it is not there or was cut short."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def note(name: str, out: Path) -> str:
    """What a part found so far, in one line."""
    found = read(out / f"{name}.json")
    if name in ("memcheck", "racecheck"):
        lines = (out / "log.txt").read_text(errors="replace").split(f"## {name}:")[-1].strip().splitlines()
        return lines[-1].lstrip("= ") if len(lines) > 1 else ""
    if not found:
        return "no result"
    if name == "doctor":
        return f"CUDA {found['facts']['cuda']}" + "".join(f"; {line}" for line in found["broken"])
    if name == "tests":
        return ", ".join(f"{count} {outcome}" for outcome, count in found["outcomes"].items())
    if name == "epochs":
        return f"{len(found)} runs, {sum('error' in row for row in found)} failed"
    if "side" in found[0]:
        return f"{len(found)} sides ran, {sum(bool(row['error']) for row in found)} failed; no times"
    ratios = [row["ratio"] for row in found if row.get("against") == "torch" and "ratio" in row]
    ahead = sum(ratio >= 1 for ratio in ratios)
    return f"{len(found)} rows; as fast as PyTorch or faster in {ahead} of {len(ratios)}"


def write(out: Path) -> None:
    """Write check.html from the JSON files that are there."""
    check = read(out / "check.json")
    body = [f"<h1>GPU check</h1><p>{escape(check['device'])}</p>", "<h2>Parts</h2>", _parts(check["parts"])]
    if doctor := read(out / "doctor.json"):
        body += ["<h2>Machine</h2>", _table(["", ""], [[name, fact] for name, fact in doctor["facts"].items()])]
    if (tests := read(out / "tests.json")) and tests["failures"]:
        rows = [[row["test"], row["message"]] for row in tests["failures"]]
        body += ["<h2>Tests that failed</h2>", _table(["test", "message"], rows)]
    if runs := read(out / "epochs.json"):
        body += [
            "<h2>One epoch, CPU and CUDA</h2>",
            "<pre>",
            *(escape(epochs.line(row)) + "\n" for row in runs),
            "</pre>",
        ]
    for name, title in (("bench", "Races"), ("compiled", "Races with torch.compile")):
        if raced := read(out / f"{name}.json"):
            body += [f"<h2>{title}</h2>", _roofline(raced), _races(raced)]
    html = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    html += f"<title>GPU check</title><style>{STYLE}</style><body>{''.join(body)}</body></html>\n"
    (out / "check.html").write_text(html)


def _parts(rows: list[dict[str, Any]]) -> str:
    cells = [
        f"<tr><td>{row['part']}</td><td class={row['state'].replace(' ', '-')}>{row['state']}</td>"
        f"<td>{row.get('seconds', '')}</td><td class=text>{escape(row['note'])}</td></tr>"
        for row in rows
    ]
    return f"<table><tr><th>part</th><th>state</th><th>s</th><th>found</th></tr>{''.join(cells)}</table>"


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [f"<tr>{''.join(f'<td class=text>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>{''.join(lines)}</table>"


def _races(rows: list[dict[str, Any]]) -> str:
    if "side" in rows[0]:
        return _table(
            ["case", "shape", "side", "outcome"],
            [[r["name"], r["shape"], r["side"], r["error"] or f"ran, {r['launches']} launches"] for r in rows],
        )
    head = ["case", "shape", "ours, ms", "% of peak", "% of copy", "against", "ms", "ratio", "MB, ours and theirs"]
    return _table(head, [_race(row) for row in rows])


def _race(row: dict[str, Any]) -> list[Any]:
    share = [row.get("percent_of_peak") or "", row.get("percent_of_copy") or ""]
    cells = [row["name"], row["shape"], row["ours_ms"], *share, row.get("against", "")]
    if "ratio" not in row:
        return [*cells, row.get("against_error", ""), "", ""]
    cells[-1] += f" {row['against_mode']}"
    return [*cells, row["against_ms"], row["ratio"], f"{row['ours_peak_mb']} and {row['against_peak_mb']}"]


def _roofline(rows: list[dict[str, Any]]) -> str:
    """The roofline of all rows as an SVG; '' in a rehearsal, or where it cannot be drawn."""
    if "machine" not in rows[0] or importlib.util.find_spec("matplotlib") is None:
        return ""
    from bench.picture import draw
    from kernels.core.cuda.peaks import Gpu

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "roofline.svg"
        draw(file, rows, Gpu(**rows[0]["machine"]))
        text = file.read_text()
    return text[text.index("<svg") :]
