"""Convolutions whose gradients torch leaves unset in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WholeConvolutions(TorchFunctionMode):
    """A context where, under autocast on the CPU, convolutions wider than their map are in float32.

    Where no site of a map has all of a kernel's neighbours, oneDNN in torch 2.13 leaves parts of
    the weight's and the bias's gradient as memory was, or writes beyond them, on processors with
    AVX-512 and without AMX (jit_bf16:avx512_core_bf16; 3-wide kernels of maps with two sites along
    the first axis, for one). Such maps are a network's smallest. It is so on any processor, that
    results depend on them no more than they must.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        y = func(*args, **kwargs)
        if func not in _CONVOLUTIONS or not torch.is_autocast_enabled("cpu"):
            return y
        names = _TRANSPOSED if func in _TRANSPOSING else _NAMES
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        kernel = named["weight"].shape[2:]
        stride, dilation = (
            (value,) * len(kernel) if isinstance(value, int) else value
            for value in (named.get("stride", 1), named.get("dilation", 1))
        )
        sites = (y if func in _TRANSPOSING else named["input"]).shape[-len(kernel) :]
        axes = zip(sites, kernel, stride, dilation, strict=True)
        if y.device.type != "cpu" or all(n >= d * (k - 1) + s for n, k, s, d in axes):
            return y  # a site, one of s, has all neighbours
        args = tuple(_whole(value) for value in args)
        kwargs = {name: _whole(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(y.dtype)


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


_TRANSPOSING = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSING)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_NAMES[:5], "output_padding", "groups", "dilation")
