"""Long runs:  python -m tests.conformance --calls 200000 --seed 0 [--only conv2d,max_pool2d] [--out FILE.json
[--summary]] [--case conv2d:17]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from .search import KEPT, Job, work

CHUNK = 250


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description="Compare every operator with PyTorch on generated cases."
    )
    parser.add_argument("--calls", type=int, default=20000, help="how many cases, spread evenly over the operators")
    parser.add_argument("--seed", type=int, default=0, help="which cases: another seed gives other ones")
    parser.add_argument("--only", default="", help="these operators only, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--out", type=Path, help="results as JSON; a run that finds its file there goes on where it ended"
    )
    parser.add_argument("--case", default="", help="show and check a single case: NAME:NUMBER")
    parser.add_argument(
        "--summary", action="store_true", help="print the results of --out as a table of Markdown, and stop"
    )
    parser.add_argument(
        "--differences", action="store_true", help="print the documented differences from PyTorch, and stop"
    )
    return parser.parse_args()


def _add(total: dict, part: dict) -> None:
    total["tried"] += part["tried"]
    for key in ("compared", "findings"):
        for what, count in part[key].items():
            total[key][what] = total[key].get(what, 0) + count
    for what, texts in part["examples"].items():
        kept = total["examples"].setdefault(what, [])
        kept.extend(texts[: max(0, KEPT - len(kept))])


def _show(name: str, tally: dict) -> None:
    others = {k: v for k, v in tally["compared"].items() if k not in ("values", "errors")}
    print(
        (
            f"{name:32} {tally['tried']:7} cases {tally['compared'].get('values', 0):7} values "
            f"{tally['compared'].get('errors', 0):6} errors"
        ),
        end="",
    )
    print(f" {sum(tally['findings'].values()):5} findings" + "".join(f"; {v} {k}" for k, v in others.items()))
    sys.stdout.flush()
    for what, texts in tally["examples"].items():
        for k, text in enumerate(texts):
            print(f"    [{tally['findings'][what]} x {what}]" if k == 0 else "    ", text)


def _parts(jobs: list[Job], processes: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if processes == 1:
        yield from map(work, jobs)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(work, jobs)


def differences() -> list[str]:
    """A line of Markdown for every documented difference: what, in which operators, and why."""
    from .table import table

    where: dict[tuple[str, str], list[str]] = {}
    for row in table().values():
        for d in row.differences:
            where.setdefault((d.what, d.why), []).append(f"`{row.name}`")
    return [f"- {what} ({', '.join(names)}): {why}." for (what, why), names in where.items()]


def summary(saved: dict[str, Any]) -> list[str]:
    """A saved run as a table of Markdown: how many calls of each operator gave values, errors on both sides, documented
    differences, findings.
    """
    lines = ["| operator | calls | values | errors | differences | findings |", "|---|--:|--:|--:|--:|--:|"]
    sums = [0] * 5
    for name, row in saved["rows"].items():
        values, errors = (row["compared"].get(key, 0) for key in ("values", "errors"))
        counts = [
            row["tried"],
            values,
            errors,
            sum(row["compared"].values()) - values - errors,
            sum(row["findings"].values()),
        ]
        lines.append(f"| `{name}` | " + " | ".join(map(str, counts)) + " |")
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
    return [*lines, "| all | " + " | ".join(map(str, sums)) + " |", "", f"Seed {saved['seed']}."]


def main() -> int:
    """Run, print per operator, save; 1 when there are findings."""
    args = _arguments()
    if args.differences:
        print("\n".join(differences()))
        return 0
    if args.summary:
        if args.out is None or not args.out.exists():
            print(f"conformance: --summary needs the results of a run: --out is {args.out}", file=sys.stderr)
            return 2
        print("\n".join(summary(json.loads(args.out.read_text()))))
        return 0
    if args.case:
        from .choices import Choices
        from .search import attempt, case_seed
        from .table import table

        name, _, k = args.case.partition(":")
        row = table()[name]
        print(row.name, row.draw(Choices(case_seed(args.seed, name, int(k)))))
        what, finding = attempt(row, Choices(case_seed(args.seed, name, int(k))))
        print(finding or what)
        return finding is not None
    from .table import table

    names = [n for n in table() if not args.only or n in args.only.split(",")]
    each = -(-args.calls // len(names))
    totals = {n: {"tried": 0, "compared": {}, "findings": {}, "examples": {}} for n in names}
    if args.out and args.out.exists():
        saved = json.loads(args.out.read_text())
        if saved["seed"] != args.seed:
            raise SystemExit(f"{args.out} holds a run with seed {saved['seed']}, not {args.seed}")
        totals |= {n: saved["rows"][n] for n in names if n in saved["rows"]}
    jobs = [(n, args.seed, k, min(k + CHUNK, each)) for n in names for k in range(totals[n]["tried"], each, CHUNK)]
    begun, before = time.perf_counter(), sum(t["tried"] for t in totals.values())
    for name, part in _parts(jobs, args.jobs):
        _add(totals[name], part)
        if args.out:
            args.out.write_text(json.dumps({"seed": args.seed, "rows": totals}, indent=1))
        if totals[name]["tried"] >= each:
            _show(name, totals[name])
    tried, findings = (
        sum(t["tried"] for t in totals.values()),
        sum(sum(t["findings"].values()) for t in totals.values()),
    )
    seconds = time.perf_counter() - begun
    print(f"{tried} cases, {findings} findings; {(tried - before) / max(seconds, 1e-9):.0f} cases a second in this run")
    return findings > 0


if __name__ == "__main__":
    sys.exit(main())
