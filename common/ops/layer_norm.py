"""Layer norm of tokens, alone and between a residual and a linear layer.

torch's spends most of its time on what it does once per row, and tokens of the finest level are
rows of 32 numbers. So where nobody asks for gradients, on the CPU, these are done in C++, in memory
that is there already: page faults of fresh memory take as long as the work.
"""

from __future__ import annotations

import ctypes
from typing import cast

import torch
from torch import Tensor, nn

from . import cpp
from .selective_scan import plain, served_in_cpp

# Elements between the norm and the linear layer at a time: they stay in the processor's cache.
CHUNK = 1 << 18


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x), of the last axis.

    Raises:
        ValueError: norm is of another width, or of several axes.
    """
    _check(x, norm)
    if not _in_cpp(x, norm):
        return norm(x)
    return _layer_norm_cpp(cast(Tensor, plain(x)), norm.weight, norm.bias, norm.eps)


def residual_norm_linear(
    x: Tensor,
    norm: nn.LayerNorm,
    linear: nn.Linear,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """linear(norm(x + scale * skip)), tokens (b, l, c) to (b, l, c'); x may be overwritten.

    Args:
        x: tokens.
        skip: tokens of x's shape, if any.
        scale: one number, (1,); none is 1.

    Raises:
        ValueError: a shape is not as above, or norm or linear is not of x's width.
    """
    _check(x, norm)
    if linear.in_features != x.shape[-1]:
        raise ValueError(
            f"linear has in_features {linear.in_features}; allowed is {x.shape[-1]}, x's last axis."
        )
    if skip is not None and skip.shape != x.shape:
        raise ValueError(f"skip has shape {tuple(skip.shape)}; allowed is x's, {tuple(x.shape)}.")
    if scale is not None and scale.shape != (1,):
        raise ValueError(f"scale has shape {tuple(scale.shape)}; allowed is (1,).")
    if scale is not None and skip is None:
        raise ValueError("scale is given without skip; allowed are both, or skip alone.")
    given = [tensor for tensor in (skip, scale) if tensor is not None]
    if type(linear) is not nn.Linear or not _in_cpp(x, norm, linear.weight, linear.bias, *given):
        if skip is not None:
            x = x.add_(skip) if scale is None else x.addcmul_(skip, scale)
        return linear(norm(x))
    x = cast(Tensor, plain(x))
    out = None
    if linear.out_features != x.shape[-1]:
        out = x.new_empty((*x.shape[:-1], linear.out_features))
    weights = (norm.weight, norm.bias, linear.weight, linear.bias)
    _residual_norm_linear_cpp(x, plain(skip), scale, *weights, norm.eps, out)
    return x if out is None else out


def _check(x: Tensor, norm: nn.LayerNorm) -> None:
    if norm.normalized_shape != x.shape[-1:]:
        raise ValueError(
            f"norm has normalized_shape {norm.normalized_shape}; allowed is {tuple(x.shape[-1:])}, "
            "x's last axis."
        )


def _in_cpp(x: Tensor, norm: nn.LayerNorm, *others: Tensor | None) -> bool:
    tensors = [y for y in (x, norm.weight, norm.bias, *others) if y is not None]
    return (
        type(norm) is nn.LayerNorm
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and x.shape[-1] > 0
        and len(tensors) == 3 + len(others)
        and all(y.is_contiguous() for y in tensors)
        and norm.weight.shape == norm.bias.shape == x.shape[-1:]
        and served_in_cpp(*tensors)
    )


@torch.library.custom_op("monai_mamba::layer_norm_cpp", mutates_args=(), device_types="cpu")
def _layer_norm_cpp(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = torch.empty_like(x)
    _run(x, weight, bias, eps, y)
    return y


@_layer_norm_cpp.register_fake
def _(x, weight, bias, eps):
    return torch.empty_like(x)


@torch.library.custom_op(
    "monai_mamba::residual_norm_linear_cpp", mutates_args=("x", "out"), device_types="cpu"
)
def _residual_norm_linear_cpp(
    x: Tensor,
    skip: Tensor | None,
    scale: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor | None,
) -> None:
    """To `out`, or where that is None to x itself."""
    rows = x.view(-1, x.shape[-1])
    out_rows = rows if out is None else out.view(len(rows), out.shape[-1])
    skip_rows = None if skip is None else skip.view(rows.shape)
    step = max(1, CHUNK // x.shape[-1])  # what lies between stays in the processor's cache
    buffer = x.new_empty((min(step, len(rows)), x.shape[-1]))
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        part = rows[here]
        y = buffer[: len(part)]
        beside = None if skip_rows is None else skip_rows[here]
        _run(part, norm_weight, norm_bias, eps, y, beside, scale)
        torch.addmm(bias, y, weight.t(), out=out_rows[here])


@_residual_norm_linear_cpp.register_fake
def _(x, skip, scale, norm_weight, norm_bias, weight, bias, eps, out):
    return None


class _LayerNorm(ctypes.Structure):
    """The arguments of layer_norm_forward, in csrc/layer_norm.h's order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "width")),
        *((name, ctypes.c_int32) for name in ("threads", "isa")),
        *((name, ctypes.c_void_p) for name in ("x", "skip", "scale", "weight", "bias", "y")),
        ("eps", ctypes.c_float),
    )


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    y: Tensor,
    skip: Tensor | None = None,
    scale: Tensor | None = None,
) -> None:
    arguments = _LayerNorm(
        rows=x.numel() // x.shape[-1],
        width=x.shape[-1],
        threads=torch.get_num_threads(),
        isa=cpp._highest_isa,
        x=x.data_ptr(),
        skip=None if skip is None else skip.data_ptr(),
        scale=None if scale is None else scale.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        y=y.data_ptr(),
        eps=eps,
    )
    cpp._run("layer_norm_forward", arguments)
