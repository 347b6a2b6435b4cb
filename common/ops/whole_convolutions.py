"""Convolutions whose gradients torch leaves unset in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WholeConvolutions(TorchFunctionMode):
    """A context where, under autocast on the CPU, convolutions wider than their map are in float32.

    Where a kernel is nowhere within its map, oneDNN in torch 2.13 leaves parts of the weight's and
    the bias's gradient as memory was, or writes beyond them, on processors with AVX-512 and without
    AMX (jit_bf16:avx512_core_bf16; 3-wide kernels of maps with two sites along the first axis, for
    one). Such maps are a network's smallest. It is so on any processor, that results depend on them
    no more than they must. Scripted networks, and the backward pass, need not be in it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if (
            func not in _CONVOLUTIONS
            or not torch.is_autocast_enabled("cpu")
            or not _wide(func, args, kwargs)
        ):
            return func(*args, **kwargs)
        dtype = torch.get_autocast_dtype("cpu")
        args = tuple(_whole(value) for value in args)
        kwargs = {name: _whole(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs).to(dtype)


def _wide(func: object, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether no place of a convolution's kernel on its map, on the CPU, is within the map."""
    names = _TRANSPOSED if func in _TRANSPOSING else _NAMES
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight = named.get("input"), named.get("weight")
    if x is None or weight is None or x.device.type != "cpu" or x.dtype == torch.float64:
        return False
    kernel = weight.shape[2:]
    stride, dilation = (_per_axis(named.get(name, 1), kernel) for name in ("stride", "dilation"))
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    padding = named.get("padding", 0)
    if isinstance(padding, str):
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    padding = _per_axis(padding, kernel)
    sites = x.shape[-len(kernel) :]
    if func in _TRANSPOSING:  # whose map is the output
        more = _per_axis(named.get("output_padding", 0), kernel)
        axes = zip(sites, stride, padding, spans, more, strict=True)
        sites = [(n - 1) * s - 2 * p + span + 1 + m for n, s, p, span, m in axes]
    first = [-p % s for p, s in zip(padding, stride, strict=True)]  # that is not in the padding
    return any(a + span >= n for a, span, n in zip(first, spans, sites, strict=True))


def _per_axis(value: int | Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * len(kernel) if len(values) == 1 else values


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


_TRANSPOSING = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)
_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, *_TRANSPOSING)
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_NAMES[:5], "output_padding", "groups", "dilation")
