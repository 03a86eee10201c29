"""All operators, under the field's names. Layout NHWC; semantics are PyTorch's wherever it has the operator.

A family lists its operators in `__all__`; they are operators of this package and nothing else has to name them.
"""

import sys

from autograd.operands import taking_operands
from autograd.ops.arithmetic import *
from autograd.ops.attention import *
from autograd.ops.comparison import *
from autograd.ops.conv import *
from autograd.ops.conv1d import *
from autograd.ops.conv_norm import *
from autograd.ops.einsum import *
from autograd.ops.elementary import *
from autograd.ops.gate import *
from autograd.ops.group_norm import *
from autograd.ops.indexing import *
from autograd.ops.linear import *
from autograd.ops.loss import *
from autograd.ops.norm import *
from autograd.ops.pointwise import *
from autograd.ops.pool import *
from autograd.ops.reduction import *
from autograd.ops.regression import *
from autograd.ops.resample import *
from autograd.ops.shape import *
from autograd.ops.sorting import *
from autograd.promotion import cast

# By sys.modules: some families have the name of an operator, which hides them here.
_families = [module for name, module in sys.modules.items() if name.startswith(f"{__name__}.")]
__all__ = ["cast", *(name for family in _families for name in getattr(family, "__all__", ()))]

# Whoever calls an operator calls it here, whatever the operands are (autograd/operands.py).
for _name in __all__:
    if callable(globals()[_name]):
        globals()[_name] = taking_operands(globals()[_name])
        globals()[_name].__module__ = __name__  # where pickle looks for it
