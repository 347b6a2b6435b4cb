"""The depthwise convolution of an image, its sums in float64.

Networks that divide by how much an image varies, as Mamba's layer norms do, make much of where a
convolution's terms cancel: there float32 has no digits left, and what it has instead depends on the
order of its sums, that is on the processor. From LightM-UNet's stem on, at its initial weights,
that moves logits by 3e-3 of the largest; rounded once, from float64, by 6e-6.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpp
from .forward_mode import refuse_tangents
from .selective_scan import plain, served_in_cpp


def depthwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each channel with a kernel of its own, zeros around: (b, c, ...) to the same.

    Args:
        x: image, two- or three-dimensional; of 16 bits, it is taken to the weight's precision.
        weight: (c, 1, ...), of an odd size that is equal along all axes.

    Raises:
        ValueError: the weight is not as above.
    """
    if weight.shape[1] != 1 or weight.shape[0] != x.shape[1] or weight.dim() != x.dim():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; allowed for x of shape {tuple(x.shape)} are "
            f"({x.shape[1]}, 1) and {x.dim() - 2} axes more."
        )
    if len(set(weight.shape[2:])) > 1 or weight.shape[-1] % 2 == 0:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; allowed are odd kernels of equal axes."
        )
    x = cast(Tensor, plain(x)).to(weight.dtype)
    if x.numel() > 0 and served_in_cpp(x, weight):
        return _depthwise_conv_cpp(x, weight)
    if x.is_meta:  # nothing is computed, and FLOPs are counted: torch has a formula for this
        convolve = F.conv2d if x.dim() == 4 else F.conv3d
        return convolve(x, weight, padding=weight.shape[-1] // 2, groups=weight.shape[0])
    return depthwise_conv_shifted(x, weight)


def depthwise_conv_shifted(x: Tensor, weight: Tensor) -> Tensor:
    """The same in plain PyTorch, the definition; what TorchScript compiles and exports have.

    ONNX's runtime has no convolution in float64, but sums and products.
    """
    kernel = weight.shape[-1]
    padded = F.pad(x.double(), [kernel // 2] * (2 * (x.dim() - 2)))
    taps = weight.double().flatten(2).unbind(2)  # the last axis' come first
    y = torch.zeros_like(x, dtype=torch.float64)
    for tap, factor in enumerate(taps):
        window, at = padded, tap
        for i in range(x.dim() - 2):
            axis = x.dim() - 1 - i
            window = window.narrow(axis, at % kernel, x.shape[axis])
            at = at // kernel
        y = torch.addcmul(y, window, factor.view([-1] + [1] * (x.dim() - 2)))
    return y.to(x.dtype)


@torch.library.custom_op("monai_mamba::depthwise_conv_cpp", mutates_args=(), device_types="cpu")
def _depthwise_conv_cpp(x: Tensor, weight: Tensor) -> Tensor:
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    cpp._run("depthwise_conv_forward", _arguments(x, weight, y))
    return y


@_depthwise_conv_cpp.register_fake
def _(x, weight):
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "monai_mamba::depthwise_conv_cpp_gradient", mutates_args=(), device_types="cpu"
)
def _depthwise_conv_cpp_gradient(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The weight's gradient."""
    dy, x = dy.contiguous(), x.contiguous()
    dweight = weight.new_empty(weight.shape)
    cpp._run("depthwise_conv_gradient", _arguments(x, dweight, dy))
    return dweight


@_depthwise_conv_cpp_gradient.register_fake
def _(dy, x, weight):
    return weight.new_empty(weight.shape)


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):
    refuse_tangents("cpp", dy=dy)
    x, weight = ctx.saved_tensors
    dx = dweight = None
    if ctx.needs_input_grad[0]:
        dx = _depthwise_conv_cpp(dy, weight.flip(list(range(2, weight.dim()))))
    if ctx.needs_input_grad[1]:
        dweight = _depthwise_conv_cpp_gradient(dy, x, weight)
    return dx, dweight


_depthwise_conv_cpp.register_autograd(_backward, setup_context=_save_for_backward)


class _DepthwiseConv(ctypes.Structure):
    """The arguments of the library's functions, in csrc/depthwise_conv.h's order."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in ("planes", "channels", "depth", "height", "width", "kernel_depth", "kernel")
        ),
        *((name, ctypes.c_int32) for name in ("threads", "isa")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "y")),
    )


def _arguments(x: Tensor, weight: Tensor, y: Tensor) -> _DepthwiseConv:
    batch, channels, *size = x.shape
    kernel = weight.shape[-1]
    return _DepthwiseConv(
        planes=batch * channels,
        channels=channels,
        depth=size[0] if len(size) == 3 else 1,
        height=size[-2],
        width=size[-1],
        kernel_depth=kernel if len(size) == 3 else 1,
        kernel=kernel,
        threads=torch.get_num_threads(),
        isa=cpp._highest_isa,
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        y=y.data_ptr(),
    )
