"""Compiled models: code that ``torch.compile`` has made holds the hooks of that moment, and looks for no others.

Guards on hooks are off by default (``torch._dynamo.config.skip_nnmodule_hook_guards``): a mask or an observer that
comes on later would silently do nothing, and one that is taken off would go on. Who changes hooks lets go of the code.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` or ``module.compile()`` was called on the model, a part of it, or around it.

    A Trainer compiles around the model that it shows to callbacks, which cannot be seen from inside.
    """
    if "torch._dynamo" not in sys.modules:
        return False
    from torch._dynamo import OptimizedModule

    return any(isinstance(m, OptimizedModule) or m._compiled_call_impl is not None for m in model.modules())


def launched_compiled() -> bool:
    """Whether Accelerate was launched to compile what it prepares."""
    return os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no"


def forget() -> None:
    """Lets go of all compiled code: what runs next is compiled anew, with the hooks that it has then."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
