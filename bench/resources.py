"""List the resources that each CUDA kernel occupies on each architecture:  python -m bench.resources [--check] [--only
TEXT]

NVRTC compiles every instance of every Module for sm_75 to sm_120 (no GPU and no driver needed); ptxas' log gives
registers, spills, stack and static shared memory. With the block and the dynamic shared memory of the largest launch
used, the occupancy follows. The result is the committed table kernels/RESOURCES.md; `--check` compares instead of
writing; a kernel that spills fails either way. Figures are the compiler's, occupancy is computed: nothing here was
measured on a GPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

from kernels.core.cpu.jit import store
from kernels.core.cuda import module
from kernels.core.cuda.module import FOLDER, Launch, Module
from kernels.core.modules import load

TABLE = FOLDER / "RESOURCES.md"
WARP, REGISTERS_PER_SM, REGISTER_UNIT = 32, 65536, 256  # registers are given to a warp in units of 256


@dataclass(frozen=True)
class Limits:
    """Per multiprocessor: warps, blocks, bytes of shared memory; bytes a block reserves, and the unit they are given
    in.

    Source: the CUDA C++ programming guide, "Compute Capabilities", and cuda_occupancy.h of the CUDA toolkit 13.
    """

    warps: int
    blocks: int
    shared: int
    reserved: int = 1024
    unit: int = 128


ARCHITECTURES = {
    75: Limits(32, 16, 64 << 10, 0, 256),
    80: Limits(64, 32, 164 << 10),
    86: Limits(48, 16, 100 << 10),
    90: Limits(64, 32, 228 << 10),
    100: Limits(64, 32, 228 << 10),
    120: Limits(48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Usage:
    """One kernel on one architecture: registers of a thread, spilled and stack bytes of a thread, static shared bytes
    of a block.
    """

    registers: int
    spills: int
    stack: int
    shared: int

    def occupancy(self, arch: int, threads: int, dynamic: int) -> float:
        """Resident warps over the most possible: the tightest of warps, blocks, registers and shared memory. 0: it
        cannot be launched.
        """
        limits = ARCHITECTURES[arch]
        warps = -(-threads // WARP)
        of_a_warp = -(-self.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        of_a_block = -(-(self.shared + dynamic + limits.reserved) // limits.unit) * limits.unit
        quarters = REGISTERS_PER_SM // of_a_warp // 4 * 4  # warps live in four partitions of the register file
        blocks = min(
            limits.warps // warps,
            limits.blocks,
            quarters // warps,
            limits.shared // of_a_block if of_a_block else limits.blocks,
        )
        return blocks * warps / limits.warps


def launchers() -> list[ModuleType]:
    """The modules of all families that launch CUDA kernels: FAMILY/cuda.py, or what is in FAMILY/cuda."""
    paths = sorted({*FOLDER.glob("*/cuda.py"), *FOLDER.glob("*/cuda/**/*.py")} - {*FOLDER.glob("core/**/*.py")})
    parts = (path.relative_to(FOLDER.parent).with_suffix("").parts for path in paths)
    return [load(".".join(part for part in path if part != "__init__")) for path in parts]


def nvrtc_version() -> str:
    """Version of the compiler, as 13.5."""
    from cupy_backends.cuda.libs import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def digest(made: Module) -> str:
    """A digest of everything but the compiler that could change the figures."""
    return hashlib.sha256(
        "\0".join((module.source_of(made.path), *made.options, *made.instances)).encode()
    ).hexdigest()[:16]


def headers() -> str:
    """CUDA's include folder: of the nvidia-* packages, else of CUDA_PATH."""
    found = importlib.util.find_spec("nvidia")
    roots = [Path(base) / "cu13" for base in (found.submodule_search_locations or ()) if found] if found else []
    roots += [Path(os.environ.get("CUDA_PATH", "/usr/local/cuda"))]
    return str(next((r for r in roots if (r / "include" / "cuda_fp16.h").exists()), roots[-1]) / "include")


def remembered_usage(
    source: str, path: str, instances: tuple[str, ...], options: tuple[str, ...], arch: int
) -> dict[str, Usage]:
    """`compile_usage`, kept in the cache folder under all that it depends on."""
    key = "\0".join((source, path, *instances, *options, str(arch), nvrtc_version()))
    folder = store().folder or Path(tempfile.gettempdir(), "areograd", "kernels")
    file = folder.parent / "resources" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if file.exists():
        return {name: Usage(*numbers) for name, numbers in json.loads(file.read_text()).items()}
    usages = compile_usage(source, path, instances, options, arch)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps({name: [u.registers, u.spills, u.stack, u.shared] for name, u in usages.items()}))
    part.replace(file)
    return usages


def compile_usage(
    source: str, path: str, instances: tuple[str, ...], options: tuple[str, ...], arch: int
) -> dict[str, Usage]:
    """Compile for one architecture with CuPy's own options: instance -> Usage. Raises RuntimeError with NVRTC's log."""
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source, path, (), ())
    try:
        for name in instances:
            nvrtc.addNameExpression(program, name)
        extra = (
            "-ftz=true",
            "--device-as-default-execution-space",
            f"-arch=sm_{arch}",
            "--ptxas-options=-v",
            f"-I{headers()}",
        )
        try:
            nvrtc.compileProgram(program, (*options, *extra))
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"kernels/{path} for sm_{arch}: {nvrtc.getProgramLog(program)}") from error
        return parse(nvrtc.getProgramLog(program), {nvrtc.getLoweredName(program, name): name for name in instances})
    finally:
        nvrtc.destroyProgram(program)


def parse(log: str, names: dict[str, str]) -> dict[str, Usage]:
    """ptxas' log -> instance -> Usage; names: mangled -> instance."""
    out = {}
    for part in log.split("Compiling entry function ")[1:]:
        mangled = part.split("'")[1]
        used = re.search(r"Used (\d+) registers([^\n]*)", part)
        if used is None or mangled not in names:
            raise RuntimeError(f"ptxas' log is not understood at {mangled}: {part[:300]}")
        properties = part[: used.start()]
        properties = properties[properties.rfind("Function properties for " + mangled) :]
        stack, stores, loads = (
            int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", properties)
        )
        shared = re.search(r"(\d+) bytes smem", used[2])
        out[names[mangled]] = Usage(int(used[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    missing = set(names.values()) - out.keys()
    if missing:
        raise RuntimeError(f"ptxas' log says nothing of {', '.join(sorted(missing))}")
    return out


def measure(
    modules: list[Module], architectures: tuple[int, ...] = tuple(ARCHITECTURES)
) -> dict[str, dict[int, dict[str, Usage]]]:
    """path -> architecture -> instance -> Usage, compiled in as many processes as there are cores."""
    jobs = [(m, arch) for m in modules for arch in architectures]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        results = [
            pool.submit(remembered_usage, module.source_of(m.path), m.path, m.instances, m.options, arch)
            for m, arch in jobs
        ]
        out: dict[str, dict[int, dict[str, Usage]]] = {m.path: {} for m in modules}
        for (m, arch), result in zip(jobs, results, strict=True):
            out[m.path][arch] = result.result()
    return out


def largest_launches() -> dict[str, Launch]:
    """Kernel -> the launch with the most shared memory: what the families declare (LARGEST_LAUNCHES), else the one
    committed with its ceilings.
    """
    from bench.counters import committed

    out = {name: Launch(name, (1,), (row["threads"],), row["dynamic_shared"]) for name, row in committed().items()}
    for family in launchers():
        out |= {launch.kernel: launch for launch in getattr(family, "LARGEST_LAUNCHES", ())}
    return out


def rows_of(path: str, usages: dict[int, dict[str, Usage]], launches: dict[str, Launch]) -> list[str]:
    """The table of one module, a line per instance."""
    titles = ["kernel", "threads", "shared bytes", "stack", *(f"sm_{arch}" for arch in usages)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name in next(iter(usages.values())):
        each = {arch: usages[arch][name] for arch in usages}
        launch = launches.get(name)
        threads, dynamic = (0, 0) if launch is None else (_product(launch.block), launch.shared)
        shared = max(u.shared for u in each.values())
        cells = [
            f"{u.registers}" + (f", {u.occupancy(arch, threads, dynamic):.0%}" if threads else "")
            for arch, u in each.items()
        ]
        stack = max(u.stack for u in each.values())
        lines.append(
            f"| `{name}` | {threads or '?'} | {shared}{f' + {dynamic}' if dynamic else ''} | {stack} | "
            + " | ".join(cells)
            + " |"
        )
    return lines


def _product(numbers: tuple[int, ...]) -> int:
    out = 1
    for n in numbers:
        out *= n
    return out


HEADER = """# What every CUDA kernel occupies

Written by `python -m bench.resources`; `tests/cuda/test_resources.py` compares. Compiler: NVRTC {version}.
No kernel spills.

Per architecture: registers of a thread, and the computed occupancy (resident warps over the most possible) for the
threads and shared bytes (static + dynamic) of the largest launch used. Stack: bytes of local memory of a thread (arrays
indexed at run time), the largest of all architectures. `?`: an instance without a committed launch. All figures are the
compiler's or computed from them; none was measured on a GPU.
"""


def document(usages: dict[str, dict[int, dict[str, Usage]]]) -> str:
    """The whole of RESOURCES.md."""
    launches = largest_launches()
    parts = [HEADER.format(version=nvrtc_version())]
    for path in sorted(usages):
        parts.append(
            f"## {path}\n\nsource {digest(module.registry[path])}\n\n"
            + "\n".join(rows_of(path, usages[path], launches))
            + "\n"
        )
    return "\n".join(parts)


@dataclass(frozen=True)
class Committed:
    """RESOURCES.md read back. rows: path -> instance -> the line's cells."""

    version: str
    digests: dict[str, str]
    rows: dict[str, dict[str, list[str]]]


def read_table(text: str) -> Committed:
    """Parse what `document` wrote."""
    found = re.search(r"NVRTC ([\d.]+)\.", text)
    digests: dict[str, str] = {}
    rows: dict[str, dict[str, list[str]]] = {}
    path = ""
    for line in text.splitlines():
        if line.startswith("## "):
            path = line[3:]
            rows[path] = {}
        elif line.startswith("source "):
            digests[path] = line[7:]
        elif line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[path][cells[0].strip("`")] = cells[1:]
    return Committed(found[1] if found else "", digests, rows)


def spills(usages: dict[str, dict[int, dict[str, Usage]]]) -> list[str]:
    """A line per kernel and architecture that spills."""
    return [
        f"kernels/{path}: {name} spills {usage.spills} bytes on sm_{arch}"
        for path, by_arch in usages.items()
        for arch, by_name in by_arch.items()
        for name, usage in by_name.items()
        if usage.spills
    ]


def worse(path: str, usages: dict[int, dict[str, Usage]], committed: Committed) -> list[str]:
    """Where fresh figures are worse than the committed ones, a line each: registers, static shared memory, stack,
    occupancy; and what is missing.
    """
    out = []
    names = list(ARCHITECTURES)
    launches = largest_launches()
    for arch, by_name in usages.items():
        for name, usage in by_name.items():
            cells = committed.rows.get(path, {}).get(name)
            if cells is None:
                out.append(f"{name} is not in kernels/RESOURCES.md: python -m bench.resources")
                continue
            registers, _, occupancy = cells[3 + names.index(arch)].partition(", ")
            figures = [("registers", usage.registers, int(registers)), ("stack", usage.stack, int(cells[2]))]
            figures.append(("static shared bytes", usage.shared, int(cells[1].split(" + ")[0])))
            out += [f"{name} on sm_{arch}: {what} {now}, committed {then}" for what, now, then in figures if now > then]
            launch = launches.get(name)
            if launch is not None and occupancy:
                now = round(usage.occupancy(arch, _product(launch.block), launch.shared), 2)
                if now < int(occupancy.rstrip("%")) / 100:
                    out.append(f"{name} on sm_{arch}: occupancy {now:.0%}, committed {occupancy}")
    return out


@dataclass(frozen=True)
class Arguments:
    """Compile every CUDA kernel for every architecture and write kernels/RESOURCES.md."""

    check: bool = False
    """Compare with the committed table instead of writing it."""
    only: str = ""
    """Only modules whose path contains this (printed, not written)."""


def run(arguments: Arguments) -> int:
    """Exit status 1 when a kernel spills, or with --check when a figure is worse."""
    from bench import emulation

    emulation.start("fast")  # some families ask for CuPy when they are imported
    launchers()
    modules = [m for path, m in sorted(module.registry.items()) if arguments.only in path]
    usages = measure(modules)
    problems = spills(usages)
    if arguments.check:
        committed = read_table(TABLE.read_text())
        problems += [line for m in modules for line in worse(m.path, usages[m.path], committed)]
    elif arguments.only:
        print(
            "\n".join(
                line for m in modules for line in (f"## {m.path}", *rows_of(m.path, usages[m.path], largest_launches()))
            )
        )
    elif not problems:
        TABLE.write_text(document(usages))
        print(
            f"{TABLE}: {sum(len(m.instances) for m in modules)} kernels of {len(modules)} modules on "
            f"{len(ARCHITECTURES)} architectures"
        )
    print(*problems, sep="\n", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    from engine.cli import parsed, run_command

    run_command(lambda: run(parsed(Arguments, "python -m bench.resources")))
