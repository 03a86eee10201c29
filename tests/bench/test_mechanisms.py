"""The switches of speed mechanisms: each finds what it replaces, and puts it back."""

from __future__ import annotations

import pytest

from autograd import Tensor, ops
from autograd.function import Function
from bench.mechanisms import MECHANISMS, Replacement

SWITCHES = {name: m.off for name, m in MECHANISMS.items() if isinstance(m.off, Replacement)}


@pytest.mark.parametrize("name", SWITCHES)
def test_a_mechanism_is_off_in_the_block_only(name: str) -> None:
    off = SWITCHES[name]
    before = [getattr(owner, attribute) for owner, attribute in off._places()]
    with off.within():
        assert all(getattr(owner, attribute) is off.value for owner, attribute in off._places())
    assert [getattr(owner, attribute) for owner, attribute in off._places()] == before


def test_a_place_that_is_gone_is_named() -> None:
    with pytest.raises(AttributeError, match=r"autograd:Tensor\.no_such_thing is not there"):
        Replacement(None, "autograd:Tensor.no_such_thing")()


def test_nothing_is_donated_while_that_is_off() -> None:
    given = []

    class Twice(Function):
        def forward(self, x):
            return 2 * x

        def backward(self, dy):
            given.append(self.donated)
            return 2 * dy

    def run() -> None:
        x = Tensor([1.0, 2.0], requires_grad=True)
        ops.sum(Twice()(Twice()(x))).backward()

    run()
    with SWITCHES["donated buffers"].within():
        run()
    assert any(any(flags) for flags in given[:2])
    assert given[2:] == [(False,)] * 2
