"""Bad inputs to operators: one clear message that names the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from autograd import Tensor
from tests.support.cases import BAD, BAD_IDS, Bad, Case


@pytest.mark.parametrize(("case", "bad"), BAD, ids=BAD_IDS)
def test_bad_input_is_named(case: Case, bad: Bad) -> None:
    rng = np.random.default_rng(0)
    arrays = [make(rng) for make in bad.inputs]
    inputs = [
        Tensor(a) if isinstance(a, np.ndarray) and a.dtype.kind == "f" and not (k == 1 and "loss" in case.name) else a
        for k, a in enumerate(arrays)
    ]
    with pytest.raises(bad.error, match=bad.match):
        case.fn(*inputs, **bad.settings)
