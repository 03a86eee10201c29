"""Vector programs: straight-line SIMD code written in Python, emitted as LLVM IR into the numba function that calls it.

A program is a Python function that runs once, while its caller is being compiled, and says which instructions to emit:

    @program
    def axpy(code: Code, x: Pointer, y: Pointer, a: Float, n: Int) -> None:        # y += a x
        scale = code.splat(a)
        with code.loop(0, n, code.lanes) as i:
            code.store(code.fma(scale, code.load(x, i), code.load(y, i)), y, i)

    @njit
    def caller(x, y): axpy(x, y, np.float32(2), x.size)

Arrays (or pointers) are C-contiguous float32, or uint8 for masks and offsets, and are addressed as flat memory; offsets
count elements. Alignment does not matter. Python `for` loops unroll; `code.loop` emits a loop. Nothing checks bounds;
registers are LLVM's choice.

The vector width is the host's (AVX-512: 16 lanes, AVX2: 8, NEON: 4, else 1, a scalar); AREOGRAD_SIMD names another one
    that it has.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.core.cpu.arguments import annotations_of
from kernels.core.cpu.simd_values import Condition, Float, Int, Pointer, Variable, Vec
from kernels.core.cpu.target import target
from kernels.core.modules import local

Scalar = TypeVar("Scalar", Int, Pointer)
_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_BYTE = ir.IntType(8)
_BIT = ir.IntType(1)

__all__ = ["Code", "Condition", "Float", "Int", "Pointer", "Variable", "Vec", "program"]


class Code:
    """The instructions of a program. `lanes` is the width of its vectors."""

    def __init__(self, builder: ir.IRBuilder, lanes: int, element: ir.Type = _FLOAT, name: str = "") -> None:
        self.builder, self.lanes, self.element, self.name = builder, lanes, element, name
        self.vector_type = ir.VectorType(element, lanes)
        self.suffix = f"v{lanes}{'f32' if element == _FLOAT else 'f64'}"

    @property
    def wide(self) -> Code:
        """The same with vectors of as many float64, where float32 is too coarse: positions in an image, long sums."""
        return Code(self.builder, self.lanes, ir.DoubleType(), self.name)

    # constants and conversions

    def int(self, value: Any) -> Int:
        """A Python int as an Int."""
        return value if isinstance(value, Int) else Int(self, _INT(int(value)))

    def vec(self, value: Any) -> Vec:
        """A Python number in all lanes."""
        return (
            value if isinstance(value, Vec) else Vec(self, ir.Constant(self.vector_type, [float(value)] * self.lanes))
        )

    def number(self, value: Int) -> Vec:
        """An integer as a float in all lanes."""
        return self.splat(Float(self, self.builder.sitofp(value.value, self.element)))

    def ramp(self) -> Vec:
        """0, 1, 2, ..."""
        return Vec(self, ir.Constant(self.vector_type, [float(k) for k in range(self.lanes)]))

    def converted(self, x: Vec) -> Vec:
        """A vector of float64 as one of float32, or the other way round."""
        change = self.builder.fpext if x.code.element == _FLOAT else self.builder.fptrunc
        return Vec(self, change(x.value, self.vector_type))

    def splat(self, value: Any) -> Vec:
        """A float argument of the program, or a number, in all lanes."""
        if isinstance(value, (float, int)):
            return self.vec(value)
        return Vec(self, self._in_all_lanes(value.value, self.element))

    # memory

    def load(self, p: Pointer, offset: Any = 0, count: Int | None = None) -> Vec:
        """`lanes` floats from p[offset]; with `count` only the first `count` of them are read, the others are 0."""
        address = self._vector_address(p, offset)
        if count is None:
            return Vec(self, self.builder.load(address, align=4))
        kind = ir.FunctionType(self.vector_type, [address.type, ir.IntType(32), self._mask_type, self.vector_type])
        name = f"llvm.masked.load.{self.suffix}.p0"
        return Vec(
            self,
            self.builder.call(
                self._declared(name, kind), [address, ir.IntType(32)(4), self._first(count), self.vec(0).value]
            ),
        )

    def store(self, value: Vec, p: Pointer, offset: Any = 0, count: Int | None = None) -> None:
        """Write a vector to p[offset]; with `count` only its first `count` lanes."""
        address = self._vector_address(p, offset)
        if count is None:
            self.builder.store(value.value, address, align=4)
            return
        kind = ir.FunctionType(ir.VoidType(), [self.vector_type, address.type, ir.IntType(32), self._mask_type])
        name = f"llvm.masked.store.{self.suffix}.p0"
        self.builder.call(self._declared(name, kind), [value.value, address, ir.IntType(32)(4), self._first(count)])

    def broadcast(self, p: Pointer, offset: Any = 0) -> Vec:
        """The one float at p[offset], in all lanes."""
        return self.splat(Float(self, self.builder.load((p + offset).value, align=4)))

    def load_bytes(self, p: Pointer, offset: Any = 0, count: Int | None = None) -> Vec:
        """`lanes` bytes from p[offset] as floats."""
        kind = ir.VectorType(_BYTE, self.lanes)
        address = self.builder.bitcast((p + offset).value, kind.as_pointer())
        if count is None:
            raw = self.builder.load(address, align=1)
        else:
            name = f"llvm.masked.load.v{self.lanes}i8.p0"
            zero = ir.Constant(kind, [0] * self.lanes)
            signature = ir.FunctionType(kind, [address.type, ir.IntType(32), self._mask_type, kind])
            raw = self.builder.call(
                self._declared(name, signature), [address, ir.IntType(32)(1), self._first(count), zero]
            )
        return Vec(self, self.builder.uitofp(raw, self.vector_type))

    def store_bytes(self, value: Vec, p: Pointer, offset: Any = 0, count: Int | None = None) -> None:
        """Write whole numbers 0..255 as bytes."""
        kind = ir.VectorType(_BYTE, self.lanes)
        raw = self.builder.fptoui(value.value, kind)
        address = self.builder.bitcast((p + offset).value, kind.as_pointer())
        if count is None:
            self.builder.store(raw, address, align=1)
            return
        signature = ir.FunctionType(ir.VoidType(), [kind, address.type, ir.IntType(32), self._mask_type])
        name = f"llvm.masked.store.v{self.lanes}i8.p0"
        self.builder.call(self._declared(name, signature), [raw, address, ir.IntType(32)(1), self._first(count)])

    def gather(self, p: Pointer, places: Vec) -> Vec:
        """The floats p[place], for the whole numbers of a vector (each is read, even where masked later)."""
        return Vec(self, self._gathered(p, places, _FLOAT))

    def gather_bytes(self, p: Pointer, places: Vec) -> Vec:
        """The bytes p[place] as floats."""
        return Vec(self, self.builder.uitofp(self._gathered(p, places, _BYTE), self.vector_type))

    def _gathered(self, p: Pointer, places: Vec, element: ir.Type) -> ir.Value:
        kind = ir.VectorType(element, self.lanes)
        addresses = ir.VectorType(element.as_pointer(), self.lanes)
        index = self.builder.fptosi(places.value, ir.VectorType(ir.IntType(32), self.lanes))
        address = self.builder.gep(p.value, [index], source_etype=element)
        address.type = addresses  # llvmlite takes it for a single one
        signature = ir.FunctionType(kind, [addresses, ir.IntType(32), self._mask_type, kind])
        every = ir.Constant(self._mask_type, [1] * self.lanes)
        suffix, alignment = ("f32", 4) if element == _FLOAT else ("i8", 1)
        function = self._declared(f"llvm.masked.gather.v{self.lanes}{suffix}.v{self.lanes}p0", signature)
        return self.builder.call(function, [address, ir.IntType(32)(alignment), every, ir.Constant(kind, ir.Undefined)])

    def load_mask(self, p: Pointer, index: Int) -> Condition:
        """The mask of the vector at element `index` (a multiple of the lanes) from bytes p,
        as `store_mask` wrote it.
        """
        bits = ir.IntType(self.lanes)
        unit = ir.IntType(max(8, self.lanes))
        raw = self.builder.load(self.builder.bitcast(self._mask_place(p, index).value, unit.as_pointer()), align=1)
        mask = self.builder.bitcast(raw if bits == unit else self.builder.trunc(raw, bits), self._mask_type)
        return Condition(self, mask)

    def store_mask(self, mask: Condition, p: Pointer, index: Int) -> None:
        """Write a mask as bits: `mask_bytes(n)` bytes hold those of n elements."""
        bits = ir.IntType(self.lanes)
        unit = ir.IntType(max(8, self.lanes))
        raw = self.builder.bitcast(mask.value, bits)
        raw = raw if bits == unit else self.builder.zext(raw, unit)
        self.builder.store(raw, self.builder.bitcast(self._mask_place(p, index).value, unit.as_pointer()), align=1)

    def _mask_place(self, p: Pointer, index: Int) -> Pointer:
        per_byte = min(8, self.lanes)
        return p + Int(self, self.builder.lshr(index.value, _INT(per_byte.bit_length() - 1)))

    def prefetch(self, p: Pointer, offset: Any, write: bool = False, near: bool = True) -> None:
        """Prefetch the cache line of p[offset], to be read or written soon (near: into the L1 cache, else the L2
        cache); the address need not exist.
        """
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()] + [ir.IntType(32)] * 3)
        address = self.builder.bitcast((p + offset).value, _BYTE.as_pointer())
        self.builder.call(
            self._declared("llvm.prefetch.p0", kind),
            [address, *(ir.IntType(32)(v) for v in (int(write), 3 if near else 2, 1))],
        )

    def enqueue(self, p: Pointer, lines: Pointer, index: Int) -> None:
        """lines[index] = the address p; a prefetch list is memory of 8 bytes an address."""
        self.builder.store(self.builder.ptrtoint(p.value, _INT), self._entry(lines, index))

    def prefetch_listed(self, lines: Pointer, index: Int) -> None:
        """Prefetch the cache line at the address lines[index] into the L2 cache."""
        address = self.builder.inttoptr(self.builder.load(self._entry(lines, index)), _BYTE.as_pointer())
        self.prefetch(Pointer(self, address), 0, near=False)

    def _entry(self, lines: Pointer, index: Int) -> ir.Value:
        return self.builder.gep(self.builder.bitcast(lines.value, _INT.as_pointer()), [index.value])

    # arithmetic

    def fma(self, a: Any, b: Any, c: Any) -> Vec:
        """a b + c, rounded once where the processor can."""
        kind = ir.FunctionType(self.vector_type, [self.vector_type] * 3)
        name = "llvm.fma" if self.lanes > 1 else "llvm.fmuladd"
        return Vec(
            self,
            self.builder.call(self._declared(f"{name}.{self.suffix}", kind), [self.vec(v).value for v in (a, b, c)]),
        )

    def exp(self, x: Any) -> Vec:
        """e^x to 2 units in the last place; 0 below -87, inf from e^x = 2^128 on, NaN of NaN.

        x = n ln 2 + r with |r| <= ln 2 / 2; 2 e^r by its series to r^7 (the next term is below 6e-9), 2^(n - 1) by the
        exponent's bits: all zero for n = -126, so that the result is 0. Two factors reach beyond 2^127, and overflow
            where the result does.
        """
        small = self.maximum(-87.3, self.minimum(x, 89))  # in this order NaN stays NaN
        n = self._unary("llvm.rint", small * 1.4426950408889634)
        r = self.fma(n, -0.693359375, small)  # ln 2 in two parts: the first has few bits, so n times it is exact
        r = self.fma(n, 2.1219444005469057e-4, r)
        total = self.vec(2 / 5040)
        for k in (720, 120, 24, 6, 2, 1, 1):
            total = self.fma(total, r, 2 / k)
        integers = ir.VectorType(ir.IntType(32), self.lanes)
        power = self.builder.add(self.builder.fptosi(n.value, integers), ir.Constant(integers, [126] * self.lanes))
        power = self.builder.shl(power, ir.Constant(integers, [23] * self.lanes))
        return total * Vec(self, self.builder.bitcast(power, self.vector_type))

    def log(self, x: Vec) -> Vec:
        """The natural logarithm to 3 units in the last place; -inf of 0 (and of what is too small to be a normal
        number), inf of inf, else NaN.

        x = 2^e m with m in [2/3, 4/3); log m = 2 artanh f, f = (m - 1) / (m + 1), by its series to f^9 (|f| <= 0.2).
        """
        integers = ir.VectorType(ir.IntType(32), self.lanes)

        def constant(value: int) -> ir.Constant:
            return ir.Constant(integers, [value] * self.lanes)

        bits = self.builder.bitcast(x.value, integers)
        shifted = self.builder.sub(bits, constant(0x3F2AAAAB))  # the bits of 2/3
        exponent = self.builder.ashr(shifted, constant(23))
        m = Vec(
            self,
            self.builder.bitcast(self.builder.sub(bits, self.builder.shl(exponent, constant(23))), self.vector_type),
        )
        f = (m - 1) / (m + 1)
        square = f * f
        total = self.vec(1 / 9)
        for k in (7, 5, 3, 1):
            total = self.fma(total, square, 1 / k)
        e = Vec(self, self.builder.sitofp(exponent, self.vector_type))
        # inf and NaN are their own
        result = self.select(self.vec(math.inf) > x, self.fma(e, 0.6931471805599453, 2 * f * total), x)
        return self.select(self.vec(0) > x, math.nan, self.select(self.vec(2.0**-126) > x, -math.inf, result))

    def sigmoid(self, x: Vec) -> Vec:
        """1 / (1 + e^-x)."""
        return 1 / (1 + self.exp(-x))

    def total(self, x: Vec) -> Vec:
        """The sum of all lanes, in all lanes."""
        return self._folded(x, lambda a, b: a + b)

    def transposed(self, vectors: Sequence[Vec]) -> list[Vec]:
        """The transpose of `lanes` vectors, first lanes first: halves of vectors change places, then halves of the
        halves.
        """
        out = list(vectors)
        width = self.lanes // 2
        while width:
            lanes = range(self.lanes)
            integers = ir.VectorType(ir.IntType(32), self.lanes)
            low = ir.Constant(integers, [k if k & width == 0 else self.lanes + k - width for k in lanes])
            high = ir.Constant(integers, [k + width if k & width == 0 else self.lanes + k for k in lanes])
            for k in (k for k in lanes if k & width == 0):
                a = out[k].value
                b = out[k + width].value
                out[k], out[k + width] = (Vec(self, self.builder.shuffle_vector(a, b, order)) for order in (low, high))
            width //= 2
        return out

    def largest(self, x: Vec) -> Vec:
        """The largest of all lanes, in all lanes; a NaN may get lost."""
        return self._folded(x, self.maximum)

    def _folded(self, x: Vec, join: Callable[[Vec, Vec], Vec]) -> Vec:
        width = self.lanes
        while width > 1:  # join the upper half with the lower one
            width //= 2
            order = [(k + width) % self.lanes for k in range(self.lanes)]
            undefined = ir.Constant(self.vector_type, ir.Undefined)
            swapped = self.builder.shuffle_vector(
                x.value, undefined, ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), order)
            )
            x = join(x, Vec(self, swapped))
        return self.broadcast_lane(x)

    def broadcast_lane(self, x: Vec) -> Vec:
        """The first lane, in all lanes."""
        return self.splat(Float(self, self.builder.extract_element(x.value, ir.IntType(32)(0))))

    def _unary(self, name: str, x: Vec) -> Vec:
        kind = ir.FunctionType(self.vector_type, [self.vector_type])
        return Vec(self, self.builder.call(self._declared(f"{name}.{self.suffix}", kind), [x.value]))

    def floor(self, x: Vec) -> Vec:
        """The largest whole number not above x."""
        return self._unary("llvm.floor", x)

    def sqrt(self, x: Vec) -> Vec:
        """The square root."""
        return self._unary("llvm.sqrt", x)

    def maximum(self, a: Any, b: Any) -> Vec:
        """a where a > b, else b: a NaN in b stays, one in a gives b. The x86 instruction does the same."""
        a, b = self.vec(a), self.vec(b)
        return self.select(a > b, a, b)

    def minimum(self, a: Any, b: Any) -> Vec:
        """b where a > b, else a: a NaN in a stays, one in b gives a."""
        a, b = self.vec(a), self.vec(b)
        return self.select(a > b, b, a)

    def relu(self, x: Vec) -> Vec:
        """max(x, 0); NaN stays NaN, as in PyTorch. One instruction."""
        return self.maximum(0, x)

    def relu_open(self, y: Vec) -> Condition:
        """Where a ReLU of argument or result y passes the gradient:
        not y <= 0, so that a NaN passes it, as in PyTorch.
        """
        return y.not_at_most(0)

    def select(self, mask: Condition, a: Any, b: Any) -> Vec:
        """a where the mask is set, else b."""
        return Vec(self, self.builder.select(mask.value, self.vec(a).value, self.vec(b).value))

    def kept(self, x: Vec, count: Int | None, other: float = 0.0) -> Vec:
        """The first `count` lanes of x (None: all), and `other` in the rest."""
        return x if count is None else self.select(Condition(self, self._first(count)), x, other)

    def spread(self, condition: Condition) -> Condition:
        """A condition as a mask: the same in all lanes."""
        return Condition(self, self._in_all_lanes(condition.value, _BIT))

    def first(self, mask: Condition) -> Condition:
        """A mask's first lane as a condition."""
        return Condition(self, self.builder.extract_element(mask.value, ir.IntType(32)(0)))

    def lesser(self, a: Int, b: Int) -> Int:
        """The smaller of two integers."""
        return self.choose(a < b, a, b)

    def rounded_down(self, n: Int) -> Int:
        """The largest multiple of `lanes` (a power of two) not above n."""
        return Int(self, self.builder.and_(n.value, _INT(-self.lanes)))

    def shifted(self, n: Int, bits: Any) -> Int:
        """n / 2^bits, rounded down."""
        return Int(self, self.builder.ashr(n.value, _INT(bits)))

    def rounded_to(self, n: Int, step: Int) -> Int:
        """The largest multiple of `step` not above n >= 0."""
        return Int(self, self.builder.mul(self.builder.sdiv(n.value, step.value), step.value))

    def opaque(self, p: Pointer) -> Pointer:
        """The same address with its origin hidden from the compiler, which then computes offsets from it where they are
        used.
        """
        return Pointer(
            self, self.builder.asm(ir.FunctionType(p.value.type, [p.value.type]), "", "=r,0", [p.value], False)
        )

    def choose(self, condition: Condition, a: Scalar, b: Scalar) -> Scalar:
        """One of two integers, or of two addresses."""
        return type(a)(self, self.builder.select(condition.value, a.value, b.value))

    def both(self, a: Condition, b: Condition) -> Condition:
        """Both conditions hold."""
        return Condition(self, self.builder.and_(a.value, b.value))

    def not_(self, a: Condition) -> Condition:
        """The condition does not hold."""
        return Condition(self, self.builder.not_(a.value))

    def either(self, a: Condition, b: Condition) -> Condition:
        """One of the conditions holds, or both."""
        return Condition(self, self.builder.or_(a.value, b.value))

    # control

    def variable(self, start: Any = 0.0) -> Variable:
        """A changing Vec."""
        return Variable(self, self.vec(start))

    @contextmanager
    def loop(self, start: Any, stop: Any, step: Any = 1) -> Iterator[Int]:
        """Emit the block once, to be run for start, start + step, ...
        while below stop (not at all when start >= stop).
        """
        builder = self.builder
        first = self.int(start)
        last = self.int(stop)
        before = builder.block
        body = builder.append_basic_block("body")
        done = builder.append_basic_block("done")
        builder.cbranch((first < last).value, body, done)
        builder.position_at_end(body)
        index = builder.phi(_INT)
        index.add_incoming(first.value, before)
        yield Int(self, index)
        following = Int(self, index) + step
        index.add_incoming(following.value, builder.block)
        builder.cbranch((following < last).value, body, done)
        builder.position_at_end(done)

    @contextmanager
    def when(self, condition: Condition | None) -> Iterator[None]:
        """Run the block only when the condition holds (None: always)."""
        if condition is None:
            yield
            return
        with self.builder.if_then(condition.value):
            yield

    # inside

    @property
    def _mask_type(self) -> ir.VectorType:
        return ir.VectorType(_BIT, self.lanes)

    def _first(self, count: Int) -> ir.Value:
        """The mask whose first `count` lanes are set."""
        lanes = ir.Constant(ir.VectorType(_INT, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", lanes, self._in_all_lanes(self.int(count).value, _INT))

    def _in_all_lanes(self, value: ir.Value, element: ir.Type) -> ir.Value:
        kind = ir.VectorType(element, self.lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), zeros) if self.lanes > 1 else first

    def _vector_address(self, p: Pointer, offset: Any) -> ir.Value:
        return self.builder.bitcast((p + offset).value, self.vector_type.as_pointer())

    def _declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        return self.builder.module.globals.get(name) or ir.Function(self.builder.module, kind, name)


# -- programs as numba intrinsics --------------------------------------------------------------------------------------


def program(build: Callable[..., None] | None = None, *, lanes: int | None = None) -> Any:
    """Make a function of (code, ...) that emits code, callable from numba: `@program` or `@program(lanes=8)`.

    Its further parameters are annotated: Pointer (an array or an address), Int, Float, or a NamedTuple, whose fields
    become Pointers, Ints and Floats by what the caller puts there. lanes: the vector width (the host's by default).
    """
    if build is None:
        return functools.partial(program, lanes=lanes)
    width = target().lanes if lanes is None else lanes
    name = f"{local(build.__module__)}.{build.__qualname__}"
    kinds = list(annotations_of(build, 1, f"program {name}").values())
    for kind in kinds:
        if kind not in (Pointer, Int, Float) and not hasattr(kind, "_fields"):
            raise ValueError(
                f"program {name}: got a parameter of {kind!r}, expected Pointer, Int, Float or a NamedTuple"
            )

    def typed(_context: Any, given: Sequence[Any]) -> Any:
        numbers: dict[Any, Any] = {Int: types.int64, Float: types.float32}
        signature = types.void(*(numbers.get(kind, g) for kind, g in zip(kinds, given, strict=True)))

        def emit(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[ir.Value]) -> ir.Value:
            code = Code(builder, width, name=name)
            inputs = [_input(code, context, kind, value) for kind, value in zip(signature.args, values, strict=True)]
            build(code, *inputs)
            return context.get_dummy_value()

        return signature, emit

    return intrinsic(_with_arity(len(kinds), typed))


def _input(code: Code, context: Any, kind: Any, value: ir.Value) -> Any:
    """A value of numba's as the program sees it."""
    if isinstance(kind, types.BaseNamedTuple):
        record: Any = kind
        fields = [_input(code, context, k, code.builder.extract_value(value, i)) for i, k in enumerate(record)]
        return record.instance_class(*fields)
    if isinstance(kind, types.CPointer):
        return Pointer(code, value)
    if isinstance(kind, types.Array):
        return Pointer(code, context.make_array(kind)(context, code.builder, value).data)
    if isinstance(kind, types.Float):
        return Float(code, context.cast(code.builder, value, kind, types.float32))
    return Int(code, context.cast(code.builder, value, kind, types.int64))


def _with_arity(count: int, typed: Callable[..., Any]) -> Callable[..., Any]:
    """A function of (context, a0, a1, ...) that calls `typed`: numba counts the parameters of the signature."""
    names = ", ".join(f"a{k}" for k in range(count))
    return eval(f"lambda context, {names}: typed(context, ({names},))", {"typed": typed})
