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
        named = dict(zip(("input", "weight"), args, strict=False)) | kwargs
        x, weight = named["input"], named["weight"]
        kernel = weight.shape[2:]
        sites = (y if func in _TRANSPOSED else x).shape[-len(kernel) :]
        if y.device.type != "cpu" or all(n >= k for n, k in zip(sites, kernel, strict=True)):
            return y
        args = tuple(_whole(value) for value in args)
        kwargs = {name: _whole(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(y.dtype)


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSED)
