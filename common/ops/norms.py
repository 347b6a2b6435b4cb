"""Group, instance and batch norm of maps, right at the sizes of volumes.

A map's norm sums over millions of sites, and on the CPU two things of torch's go wrong there. Its
kernels for channels-last maps sum in plain float32: they are off by 4e-3 at 128 x 128 x 128 where
those for contiguous maps are by 7e-7. And of one item, instance and batch norm may read a gradient
of another layout than the map's in the wrong order, in eval mode too. So here channels-last maps
are normalised in C++, with sums in float64; all others by torch, contiguous forward and backward.
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


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool = False
) -> Tensor:
    """Normalise groups of an item's channels over the map (Wu and He 2018, arXiv:1803.08494)::

        y = (x - mean) / sqrt(var + eps) weight + bias;    y = max(y, 0) where `relu`

    Args:
        x: map, (b, c, ...); of 16 bits, it is taken to the weight's precision.
        groups: of c / groups channels each, which are next to each other.
        weight, bias: (c,).
        eps: added to the variance.
        relu: whether a ReLU follows.

    Returns:
        A map of x's shape in the weight's dtype.
    """
    x = cast(Tensor, plain(x)).to(weight.dtype)
    if _in_cpp(x, weight, bias):
        return _normalised(x, groups, weight, bias, eps, relu)
    y = F.group_norm(_contiguous(x), groups, weight, bias, eps)
    return F.relu(y) if relu else y


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each channel of an item over the map (Ulyanov et al. 2016, arXiv:1607.08022).

    Arguments and output as in `group_norm`. A map of one site becomes the bias.
    """
    x = cast(Tensor, plain(x)).to(weight.dtype)
    if _in_cpp(x, weight, bias):
        return _normalised(x, x.shape[1], weight, bias, eps)
    y = torch.instance_norm(_contiguous(x), weight, bias, None, None, True, 0.0, eps, True)
    return _contiguous_gradient(y)


def batch_norm(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Normalise each channel over batch and map (Ioffe and Szegedy 2015, arXiv:1502.03167).

    Arguments and output as in `group_norm`, and:

    Args:
        running_mean, running_var: (c,), what normalises x where not `training`; else moved by
            `momentum` of the way to the batch's mean and unbiased variance.

    Raises:
        ValueError: `training` on a batch of one site.
    """
    x = cast(Tensor, plain(x)).to(weight.dtype)
    sites = x.numel() // x.shape[1]
    if not training or sites == 1 or not _in_cpp(x, weight, bias):
        y = F.batch_norm(
            _contiguous(x), running_mean, running_var, weight, bias, training, momentum, eps
        )
        return _contiguous_gradient(y)
    rows = x.movedim(1, -1)
    y, mean, rstd = _group_norm_cpp(
        rows.reshape(1, sites, -1), weight, bias, x.shape[1], eps, False
    )
    with torch.no_grad():
        var = (rstd.square().reciprocal() - eps) * (sites / (sites - 1))
        for running, now in ((running_mean, mean), (running_var, var)):
            running.mul_(1 - momentum).add_(now[0], alpha=momentum)
    return y.view(rows.shape).movedim(-1, 1)


def _in_cpp(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    last = x.movedim(1, -1).is_contiguous()
    return x.numel() > 0 and last and served_in_cpp(x, weight, bias)


def _normalised(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, relu: bool = False
) -> Tensor:
    """`group_norm` of a channels-last map, in C++."""
    rows = x.movedim(1, -1)
    y = _group_norm_cpp(rows.flatten(1, -2), weight, bias, groups, eps, relu)[0]
    return y.view(rows.shape).movedim(-1, 1)


def _contiguous(x: Tensor) -> Tensor:
    return x.contiguous() if x.device.type == "cpu" else x


def _contiguous_gradient(y: Tensor) -> Tensor:
    """The same tensor; the gradient that its norm sees will be contiguous."""
    if y.device.type == "cpu" and y.requires_grad and not torch.compiler.is_compiling():
        y.register_hook(Tensor.contiguous)
    return y


@torch.library.custom_op("monai_mamba::group_norm_cpp", mutates_args=(), device_types="cpu")
def _group_norm_cpp(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y of rows (b, l, c); mean and 1 / sqrt(var + eps), (b, groups) in float64."""
    _check(x, weight, bias, groups)
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y, mean, rstd = _outputs(x, groups)
    norm = _arguments(x, weight, bias, mean, rstd, eps, relu)
    norm.y = y.data_ptr()
    cpp._run("group_norm_forward", norm)
    return y, mean, rstd


@_group_norm_cpp.register_fake
def _(x, weight, bias, groups, eps, relu):
    return _outputs(x, groups)


@torch.library.custom_op(
    "monai_mamba::group_norm_cpp_backward", mutates_args=(), device_types="cpu"
)
def _group_norm_cpp_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    rstd: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dy, x, weight, bias = (tensor.contiguous() for tensor in (dy, x, weight, bias))
    dx, dweight, dbias = (tensor.new_empty(tensor.shape) for tensor in (x, weight, bias))
    norm = _arguments(x, weight, bias, mean, rstd, eps, relu)
    norm.dy, norm.dx = dy.data_ptr(), dx.data_ptr()
    norm.dweight, norm.dbias = dweight.data_ptr(), dbias.data_ptr()
    cpp._run("group_norm_backward", norm)
    return dx, dweight, dbias


@_group_norm_cpp_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, eps, relu):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, weight, bias))


def _save_for_backward(ctx, inputs, output):
    x, weight, bias, _, ctx.eps, ctx.relu = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx, dy, *_):
    refuse_tangents("cpp", dy=dy)
    if dy is None:
        return (None,) * 6
    return *_group_norm_cpp_backward(dy, *ctx.saved_tensors, ctx.eps, ctx.relu), None, None, None


_group_norm_cpp.register_autograd(_backward, setup_context=_save_for_backward)


def _check(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed is (b, l, c), none of them 0.")
    channels = x.shape[2]
    if groups < 1 or channels % groups:
        raise ValueError(f"groups is {groups}; allowed are divisors of {channels}, the channels.")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed is ({channels},).")
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} has dtype {tensor.dtype}; allowed here is float32.")


def _outputs(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty((x.shape[0], groups), dtype=torch.float64) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


class _GroupNorm(ctypes.Structure):
    """The arguments of the library's functions, in csrc/group_norm.h's order."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "rows", "channels", "groups")),
        *((name, ctypes.c_int32) for name in ("threads", "isa", "relu", "unused")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "mean", "rstd", "y")),
        *((name, ctypes.c_void_p) for name in ("dy", "dx", "dweight", "dbias")),
    )


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, eps: float, relu: bool
) -> _GroupNorm:
    batch, rows, channels = x.shape
    return _GroupNorm(
        batch=batch,
        rows=rows,
        channels=channels,
        groups=mean.shape[1],
        threads=torch.get_num_threads(),
        isa=cpp._highest_isa,
        relu=relu,
        eps=eps,
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        mean=mean.data_ptr(),
        rstd=rstd.data_ptr(),
    )
