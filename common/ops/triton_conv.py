"""The causal depthwise convolution with SiLU in Triton: what launches `triton_kernels_conv`.

Plain functions without a gradient of their own, for `mamba_mixer_triton`. Tensors may have any
strides; fast are those where a token's channels are next to each other.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .triton_scan import _power_of_two, _view

CHANNELS = 64  # of a program, two for each lane of its warp
SPAN = 64  # tokens of a program
ROWS = 16  # tokens that it loads at a time


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> None:
    """y = SiLU(causal_conv1d(x, weight) + bias); x, y (b, d, l), weight (d, 1, k), bias (d,)."""
    _launch(_kernels().forward, x, weight, bias, _view(x), _view(y))


def causal_conv_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dx: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias; that of x is written to dx, memory of neither x nor dy.

    Sums over tokens and batch are kept in parts and added in a fixed order.
    """
    parts = x.shape[0] * _spans(x)
    dweight, dbias = (y.new_empty((parts, *y.shape), dtype=torch.float32) for y in (weight, bias))
    _launch(_kernels().backward, x, weight, bias, _view(x), _view(dy), _view(dx), dweight, dbias)
    return dweight.sum(0).to(weight.dtype), dbias.sum(0).to(bias.dtype)


def _kernels() -> ModuleType:
    from . import triton_kernels_conv

    return triton_kernels_conv


def _launch(kernel: Any, x: Tensor, weight: Tensor, bias: Tensor, *tensors: Any) -> None:
    batch, d, length = x.shape
    channels, spans = min(CHANNELS, _power_of_two(d)), _spans(x)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[(batch * spans * -(-d // channels),)](
            weight.contiguous(), bias.contiguous(), *tensors, d, length, spans,
            TAPS=weight.shape[2], CHANNELS=channels, SPAN=SPAN, ROWS=ROWS,
            num_warps=1,
        )  # fmt: skip


def _spans(x: Tensor) -> int:
    return -(-x.shape[2] // SPAN)
