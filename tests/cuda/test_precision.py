"""The precision policy decides who computes a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernels import conv
from kernels.core.geometry import Window
from kernels.core.precision import use_precision

WINDOW, UP = Window.of("conv2d", 3, 1, 1), Window((2, 2), (2, 2))


def launched(cp: Any, served: list, policy: str, groups: int = 1) -> list[str]:
    """Kernels of the four directions under a policy."""
    x = cp.asarray(np.random.default_rng(0).standard_normal((1, 4, 6, 8)), np.float32)
    w, up = cp.ones((3, 3, 8 // groups, 8), np.float32), cp.ones((2, 2, 8, 8), np.float32)
    served.clear()
    with use_precision(policy):
        y = conv.conv2d_forward((x,), w, None, WINDOW, groups)
        conv.conv2d_backward_data(y, w, (4, 6), WINDOW, groups)
        conv.conv2d_backward_filter((x,), y, WINDOW, groups)
        conv.conv_transpose2d_forward(x, up, None, (8, 12), UP)
    return [launch.kernel for launch in served]


@pytest.mark.trace
@pytest.mark.parametrize(("policy", "kind"), [("tf32", "Tf32"), ("bf16", "Bf16"), ("float16", "F16")])
def test_a_policy_takes_the_tensor_cores(cp: Any, served: list, policy: str, kind: str) -> None:
    names = launched(cp, served, policy)
    assert [name for name in names if f"<{kind}," not in name and not name.startswith("add_parts")] == []
    assert {name.split("<")[0] for name in names} >= {"forward", "filter"}


def test_float32_and_groups_do_not(cp: Any, served: list) -> None:
    assert not any("<Tf32" in name for name in launched(cp, served, "float32"))
    names = launched(cp, served, "tf32", groups=2)
    assert sum("<Tf32" in name for name in names) == 4  # the transposed convolution's four phases alone
