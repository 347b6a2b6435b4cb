"""Forward-mode derivatives: a registered operator drops them unseen, as if they were zero."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad


def is_transformed(x: Tensor) -> bool:
    """Whether x carries a forward-mode derivative, or is inside a transform of torch.func."""
    if torch.compiler.is_compiling():
        return False
    return is_functorch_wrapped_tensor(x) or forward_ad.unpack_dual(x).tangent is not None


def refuse_tangents(backend: str, **tensors: Tensor | None) -> None:
    """Raises NotImplementedError where a tensor carries a forward-mode derivative.

    Inside two transforms of torch.func a tensor does not tell which of them it belongs to. Then it
    is refused wherever one of them is forward mode.
    """
    if forward_ad._current_level < 0:
        return
    for name, x in tensors.items():
        if x is not None and is_transformed(x):
            raise NotImplementedError(
                f"{name} has a forward-mode derivative, which backend "
                f"{backend!r} cannot pass on; allowed are reverse mode and backend 'reference'."
            )
