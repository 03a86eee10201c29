"""The thread pool of the CPU kernels. One knob: AREOGRAD_THREADS, or `set_threads`.

Work is cut into chunks by its shape alone, never by the number of threads, and a chunk is computed by one thread:
results are the same bits for any number of threads.

How a job is submitted. Workers sit in native code, without the interpreter's lock, and watch one word of memory:

    next = chunks << 40 | chunks taken from the end << 20 | chunks taken from the start

The caller writes the job's fields, then `next`; the thread that adds to a count of taken chunks and finds that some
were left computes that chunk. The caller takes them from the start, workers from the end: neighbouring pixels stay with
one core, and with them its cache, from layer to layer. The caller joins when the count of finished chunks is complete.
That takes about a microsecond; waking a thread would take fifty. A worker that has spun in vain for about a millisecond
goes to sleep in the interpreter and says so; the next caller wakes it, and only then submits its job.

Interrupts (Ctrl-C, a signal's handler that raises) strike between two steps of the interpreter. One native call
therefore submits, runs and joins a job: an exception finds either no job, or one that is finished, and never a taken
lock.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from threadpoolctl import threadpool_limits

from kernels.core import tracing
from kernels.core.cpu import buffer_pool
from kernels.core.cpu.arguments import MOST_ARGUMENTS
from kernels.core.cpu.cores import capped, usable_cores
from kernels.core.cpu.jit import Kernel, cached, discovered, drop_bitcode
from kernels.core.dispatch import mark_host_computation

# Words of the control block, a cache line apart. From _MEMBERS on, per member: its scratch address, whether it spins.
_NEXT, _FINISHED, _ADDRESS, _SLOTS, _BUSY, _MEMBERS = 0, 8, 16, 24, 32, 40
BUSY = -1  # a launch returns this while another thread's job runs
_LINE = 8
_COUNT = (1 << 20) - 1
_SPIN_LIMIT = 60_000  # polls before a worker goes to sleep

_I64 = ir.IntType(64)


def _native(arguments: int, emit: Callable[[ir.IRBuilder, Sequence[ir.Value]], ir.Value | None]) -> Any:
    """An intrinsic on int64 arguments; `emit` gives an int64 result or None."""

    def typed(_context: Any, given: Sequence[Any]) -> Any:
        result = types.int64(*(types.int64,) * arguments)

        def lower(_target: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            return emit(builder, values) or _I64(0)

        return result, lower

    names = ", ".join(f"a{k}" for k in range(arguments))
    scope = {"typed": typed}
    return intrinsic(eval(f"lambda context, {names}: typed(context, ({names},))", scope))


def _place(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, _I64.as_pointer())


def _emit_call(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
    address, start, stop, scratch, slots = values
    pointer = ir.FloatType().as_pointer()
    function = builder.inttoptr(
        address, ir.FunctionType(ir.VoidType(), [_I64, _I64, pointer, _I64.as_pointer()]).as_pointer()
    )
    builder.call(function, [start, stop, builder.inttoptr(scratch, pointer), _place(builder, slots)])


def _emit_store(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
    builder.store_atomic(values[1], _place(builder, values[0]), "seq_cst", 8)


@intrinsic
def _store_float(_context, place, value):  # type: ignore[no-untyped-def]
    def lower(_target: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        builder.store(values[1], builder.inttoptr(values[0], ir.DoubleType().as_pointer()))
        return _I64(0)

    return types.int64(types.int64, types.float64), lower


@intrinsic
def _store_address(_context, place, array):  # type: ignore[no-untyped-def]
    def lower(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
        data = context.make_array(signature.args[1])(context, builder, values[1]).data
        builder.store(builder.ptrtoint(data, _I64), _place(builder, values[0]))
        return _I64(0)

    return types.int64(types.int64, array), lower


def _emit_pause(builder: ir.IRBuilder, _values: Sequence[ir.Value]) -> None:
    """Wait for some ten cycles, and leave the core to others meanwhile. On ARM a barrier for instructions does it;
    `yield` does nothing on most.
    """
    triple = builder.module.triple
    word = ir.IntType(32)
    if "x86" in triple or "i686" in triple:
        name = "llvm.x86.sse2.pause"
        arguments = []
    elif "aarch64" in triple or "arm64" in triple:
        name = "llvm.aarch64.isb"
        arguments = [word(15)]
    else:
        return
    kind = ir.FunctionType(ir.VoidType(), [word] * len(arguments))
    builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), arguments)


def _emit_take(builder: ir.IRBuilder, values: Sequence[ir.Value]) -> ir.Value:
    """Whether a word was 0; it is 1 afterwards."""
    result = builder.cmpxchg(_place(builder, values[0]), _I64(0), _I64(1), "seq_cst", "seq_cst")
    return builder.zext(builder.extract_value(result, 1), _I64)


load = _native(1, lambda b, v: b.load_atomic(_place(b, v[0]), "seq_cst", 8))
_store = _native(2, _emit_store)
_add = _native(2, lambda b, v: b.atomic_rmw("add", _place(b, v[0]), v[1], "seq_cst"))
_test_and_set = _native(1, _emit_take)
call = _native(5, _emit_call)
_pause = _native(1, _emit_pause)


def compiled(function: Any) -> Any:
    """Machine code of a function of integers that runs without the interpreter's lock."""
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    cached(dispatcher, function, function.__qualname__)
    return dispatcher


@compiled
def _left(word):  # type: ignore[no-untyped-def]
    """The number of chunks not yet taken (below zero when several threads came too late)."""
    return (word >> 40) - (word >> 20 & _COUNT) - (word & _COUNT)


@compiled
def _work(control, member):  # type: ignore[no-untyped-def]
    """Take chunks of the current job until none is left."""
    while True:
        if _left(load(control + 8 * _NEXT)) <= 0:
            return
        word = _add(control + 8 * _NEXT, 1 << 20 if member else 1)
        if _left(word) <= 0:
            return
        chunk = (word >> 40) - 1 - (word >> 20 & _COUNT) if member else word & _COUNT
        # The caller changes these fields only when all chunks are finished, and ours is not.
        address = load(control + 8 * _ADDRESS)
        slots = load(control + 8 * _SLOTS)
        call(address, chunk, chunk + 1, load(control + 8 * (_MEMBERS + 2 * _LINE * member)), slots)
        _add(control + 8 * _FINISHED, 1)


@compiled
def _watch(control, member, spin_limit):  # type: ignore[no-untyped-def]
    """A worker: work, poll for more, and return after polling long in vain."""
    awake = control + 8 * (_MEMBERS + 2 * _LINE * member + _LINE)
    _store(awake, 1)
    looks = 0
    while True:
        if _left(load(control + 8 * _NEXT)) > 0:
            if looks > spin_limit:
                _store(awake, 1)
            _work(control, member)
            looks = 0
            continue
        if looks > spin_limit:
            return
        if looks == spin_limit:
            _store(awake, 0)  # then look once more: a caller either sees this, or its job is seen here
        looks += 1
        _pause(0)


@compiled
def sleeping_workers(control, workers):  # type: ignore[no-untyped-def]
    """How many workers have to be woken."""
    count = 0
    for member in range(1, workers + 1):
        count += 1 - load(control + 8 * (_MEMBERS + 2 * _LINE * member + _LINE))
    return count


@compiled
def acquire(control, scratch, stride, workers, awake):  # type: ignore[no-untyped-def]
    """Make the pool this caller's. 0: it is; BUSY: it is another thread's; else how many workers sleep, and it is not
    (unless `awake`: they have
    been woken). scratch, stride: where the caller's own memory lies, and how many bytes further on each worker's.
    """
    if not _test_and_set(control + 8 * _BUSY):
        return BUSY
    sleeping = 0 if awake else sleeping_workers(control, workers)
    if sleeping:
        release(control)
        return sleeping
    for member in range(workers + 1):
        _store(control + 8 * (_MEMBERS + 2 * _LINE * member), scratch + stride * member)
    return 0


@compiled
def release(control):  # type: ignore[no-untyped-def]
    """Let other threads have the pool."""
    _store(control + 8 * _BUSY, 0)


@compiled
def run_job(control, address, slots, chunks):  # type: ignore[no-untyped-def]
    """Submit a job, work at it, and wait for the chunks that workers took."""
    _store(control + 8 * _FINISHED, 0)
    _store(control + 8 * _ADDRESS, address)
    _store(control + 8 * _SLOTS, slots)
    _store(control + 8 * _NEXT, chunks << 40)
    _work(control, 0)
    while load(control + 8 * _FINISHED) < chunks:
        _pause(0)


def address_of(array: np.ndarray) -> int:
    """The address of an array's first number."""
    return array.__array_interface__["data"][0]


# -- launching: one native call acquires the pool, writes the arguments, submits the job, works at it and releases the
# pool

_launchers: dict[tuple[type, ...], Any] = {}


def launcher(kernel: Kernel) -> Any:
    """launch(control, slots, address, chunks, workers, awake, scratch, stride, *arguments) for the kernel's argument
    types, compiled on first use.

    It returns 0 when all is done, else what `acquire` returns, and nothing is done. workers = 0: the caller does it
    alone; control = 0: without the pool.
    """
    slots = tuple(kernel.signature.slots)
    if slots not in _launchers:
        names = [f"a{k}" for k in range(len(slots))]
        lines = [f"def launch(control, slots, address, chunks, workers, awake, scratch, stride, {', '.join(names)}):"]
        lines += ["    obstacle = _acquire_pool(control, scratch, stride, workers, awake) if control else 0"]
        lines += ["    if obstacle:", "        return obstacle"]
        for k, (name, slot) in enumerate(zip(names, slots, strict=True)):
            write = {int: f"_store(slots + {8 * k}, {name})", float: f"_store_float(slots + {8 * k}, {name})"}
            lines.append("    " + write.get(slot, f"_store_address(slots + {8 * k}, {name})"))
        lines += ["    return _start(control, slots, address, chunks, workers, scratch)"]
        scope: dict[str, Any] = {"_store_float": _store_float, "_store_address": _store_address}
        scope |= {"_store": _store, "_acquire_pool": acquire, "_start": _start, "__name__": __name__}
        exec("\n".join(lines), scope)
        dispatcher = numba.njit(nogil=True, error_model="numpy")(scope["launch"])
        cached(dispatcher, scope["launch"], "launch " + " ".join(slot.__name__ for slot in slots))
        dispatcher.compile((types.int64,) * 8 + kernel.signature.argument_types())
        dispatcher.disable_compile()  # another type of argument is a bug: a TypeError
        for compiled in dispatcher.overloads.values():
            drop_bitcode(compiled)
        _launchers[slots] = dispatcher
    return _launchers[slots]


@compiled
def _start(control, slots, address, chunks, workers, scratch):  # type: ignore[no-untyped-def]
    if workers:
        run_job(control, address, slots, chunks)
    else:
        call(address, 0, chunks, scratch, slots)
    if control:
        release(control)
    return 0


class Scratch(NamedTuple):
    """The scratch memory of every member of a pool: an array (members, floats), its address, a member's bytes, a
    member's floats.
    """

    array: np.ndarray
    address: int
    stride: int
    floats: int


class _ThreadPool:
    """The caller and `size` - 1 workers with their control block and scratch memory."""

    def __init__(self, size: int) -> None:
        self.size = size
        raw = np.zeros(_MEMBERS + 2 * _LINE * size + _LINE, np.int64)
        self.block = raw[-(address_of(raw) // 8) % _LINE :]
        self.control = address_of(self.block)
        self.slots = np.empty(MOST_ARGUMENTS, np.int64)  # of the thread that holds the pool
        self.slots_address = address_of(self.slots)
        self.reserve(16)
        if size > 1:
            _watch.compile((types.int64,) * 3)  # not by the workers, which would be late for the first jobs
        self.wakers: list[SimpleQueue[bool]] = [SimpleQueue() for _ in range(size - 1)]
        for k, waker in enumerate(self.wakers):
            threading.Thread(target=self._help, args=(waker, k + 1), name=f"areograd-{k + 1}", daemon=True).start()

    def _help(self, waker: SimpleQueue[bool], member: int) -> None:
        while waker.get():
            _watch(self.control, member, _SPIN_LIMIT)

    def reserve(self, floats: int) -> Scratch:
        """Give every member that much scratch memory. A launch that still runs keeps its own."""
        floats += -floats % 1024 + 16  # rows a cache line off a power of two
        array = buffer_pool.pool.empty((self.size, floats))  # in huge pages; on failure the present memory stays valid
        self.scratch = Scratch(array, address_of(array), array.strides[0], floats)
        return self.scratch

    def wake(self) -> None:
        """Wake the workers that sleep."""
        for member, waker in enumerate(self.wakers, 1):
            if waker.empty() and not self.block[_MEMBERS + 2 * _LINE * member + _LINE]:
                waker.put(True)

    def close(self) -> None:
        """Let the workers end."""
        for waker in self.wakers:
            waker.put(False)


_pool: _ThreadPool | None = None
_process = 0


def _default() -> int:
    asked = os.environ.get("AREOGRAD_THREADS", "").strip()
    if not asked:
        return usable_cores()
    if not re.fullmatch("[0-9]{1,9}", asked) or int(asked) < 1:
        raise ValueError(f"AREOGRAD_THREADS: got {asked!r}, expected a positive number")
    return capped(int(asked), "AREOGRAD_THREADS")


def threads() -> int:
    """How many threads kernels use."""
    return current_pool().size


def set_threads(count: int) -> None:
    """Use `count` threads from now on, also more than there are cores (then slower than few). ValueError below 1."""
    global _pool, _process
    if count < 1:
        raise ValueError(f"threads: got {count}, expected at least 1")
    before = _pool if _process == os.getpid() else None
    if before is not None and before.size == count:
        return
    # BLAS threads spin for milliseconds after a product; one core's worth of them halves the speed of everything here.
    threadpool_limits(1, user_api="blas")
    # then the old one ends: an interrupt in between leaves a pool that works
    _pool = _ThreadPool(count)
    _process = os.getpid()
    if before is not None:
        before.close()


def current_pool() -> _ThreadPool:
    """The threads that kernels use now."""
    if _pool is None or _process != os.getpid():  # threads do not survive a fork
        set_threads(_default())
    return _pool  # type: ignore[return-value]


class _Recorder(threading.local):
    """Per thread: the listener that is told of every launch (address, chunks, scratch, argument slots, arguments);
    see capture.py.
    """

    tell: Callable[..., None] | None = None


recorder = _Recorder()


def contiguous(array: Any, dtype: Any = None) -> Any:
    """The array itself if kernels can take it: C-contiguous and, where a dtype is given, of that one; else a copy that
    is.
    """
    if not array.flags.c_contiguous or (dtype is not None and array.dtype != dtype):
        mark_host_computation()
        array = np.ascontiguousarray(array, dtype)
    return array


def flat(*arrays: Any) -> list[Any]:
    """The arrays as kernels take them, with one axis: themselves where they are contiguous, else copies."""
    return [contiguous(a).reshape(-1) for a in arrays]


def parallel(kernel: Kernel, chunks: int, *arguments: Any, scratch: int = 0) -> None:
    """kernel(k, k + 1, own scratch, *arguments) for every k below `chunks` (at most a million), over all threads, each
    k once.

    scratch: floats of uninitialised memory that each thread has for itself.
    """
    if chunks <= 0 or discovered(kernel):
        return
    tracer = tracing.current.tracer
    if tracer is None:
        _launch(kernel, chunks, arguments, scratch)
    else:
        tracer.run(tracing.KERNEL, kernel.name, _launch, kernel, chunks, arguments, scratch)


def _launch(kernel: Kernel, chunks: int, given: tuple[Any, ...], scratch: int) -> None:
    address = kernel.address or kernel.compile()
    launch = kernel.launcher
    if launch is None:
        launch = kernel.launcher = launcher(kernel)
    arguments = kernel.signature.arguments(given)
    pool = current_pool()
    room = pool.scratch if scratch <= pool.scratch.floats else pool.reserve(scratch)
    workers = pool.size - 1 if chunks > 1 else 0
    slots, place = (pool.slots, pool.slots_address) if recorder.tell is None else own_slots()
    obstacle = launch(pool.control, place, address, chunks, workers, 0, room.address, room.stride, *arguments)
    if obstacle > 0:
        pool.wake()
        obstacle = launch(pool.control, place, address, chunks, workers, 1, room.address, room.stride, *arguments)
    if obstacle == BUSY:  # called from within another thread's job
        own = np.empty(scratch + 16, np.float32)
        slots, place = own_slots()
        launch(0, place, address, chunks, 0, 1, address_of(own), 0, *arguments)
    if recorder.tell:
        recorder.tell(address, chunks, scratch, slots, arguments)


def own_slots() -> tuple[np.ndarray, int]:
    """Memory for a launch's arguments that no other launch writes to, and its address."""
    slots = np.empty(MOST_ARGUMENTS, np.int64)
    return slots, address_of(slots)
