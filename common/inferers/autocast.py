"""Shorter arithmetic on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor

from ..ops import WholeConvolutions


class AutocastInferer(Inferer):
    """Another inferer, on the CPU under autocast: that of MONAI's engines is for CUDA alone.

    With the exception of `WholeConvolutions`, that gradients be right.

    Args:
        inferer: how the network is applied.
        device: that of the engine. On any other than the CPU nothing is done here.
        dtype: of products and convolutions.
        enabled: whether there is autocast.
    """

    def __init__(self, inferer: Inferer, device: str, dtype: torch.dtype, enabled: bool) -> None:
        super().__init__()
        self.inferer = inferer
        self.dtype = dtype
        self.enabled = enabled and torch.device(device).type == "cpu"

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """What the other inferer gives."""
        if not self.enabled:
            return self.inferer(inputs, network, *args, **kwargs)
        with torch.autocast("cpu", self.dtype), WholeConvolutions():
            return self.inferer(inputs, network, *args, **kwargs)
