"""Launch every CUDA kernel once, on small maps:  python -m bench.gpu_check.representatives

This is what compute-sanitizer watches. On the emulator its own modes check and trace watch instead, and what they find
is printed.
"""

from __future__ import annotations

import sys

from bench import emulation


def main() -> int:
    """Exit code 1 if a call failed or the emulator found something."""
    where = emulation.start()
    if not where.mode:
        print(f"error: {where.reason}", file=sys.stderr)
        return 2
    import cupy

    from bench.harness import in_one_line
    from bench.representatives import calls
    from kernels.core.cuda.module import launch_log

    cupy.cuda.set_allocator(None)  # an array is an allocation of its own, so that reading past it is seen
    wrong = 0
    with launch_log() as log:
        for name, call in calls().items():
            try:
                call("float32")
                cupy.cuda.Device().synchronize()
            except Exception as error:  # the others are still of interest
                wrong += 1
                print(f"{name}: {in_one_line(error)}", flush=True)
    print(f"{len(log)} launches of {len({launch.kernel for launch in log})} kernels, {wrong} calls failed", flush=True)
    emulator = emulation.emulator()
    if emulator is not None:
        found = emulator.process_report().own_findings
        print(f"the emulator ({where.mode}) found {len(found)} mistakes")
        wrong += len(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
