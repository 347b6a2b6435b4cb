"""The selective scan of the package mamba-ssm, where it is installed: CUDA only, never required."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

HOW_TO_GET = (
    "Install it with: pip install mamba-ssm --no-build-isolation "
    "(it is compiled on your machine, with the CUDA toolkit)."
)
MOST_STATES = 256
MOST_ELEMENTS = 2**32 - 1  # its offsets are unsigned 32-bit integers


@functools.cache
def why_unavailable() -> str | None:
    """None where mamba-ssm can be imported, else the reason, as a sentence."""
    try:
        from mamba_ssm.ops import selective_scan_interface  # noqa: F401
    except (ImportError, OSError) as error:  # an extension built for another torch is either
        return f"mamba-ssm is not available: {error}."
    return None


def is_fastest(u: Tensor, A: Tensor) -> bool:
    """Whether mamba-ssm is there and the best choice for these shapes.

    It runs one block of threads per batch item and channel over the whole sequence, which needs
    1024 of them to fill a GPU; `triton_scan` cuts the sequence too. It is no registered operator,
    so torch.compile would break the graph at it.
    """
    return (
        u.shape[0] * u.shape[1] >= 1024
        and A.shape[1] <= MOST_STATES
        and u.numel() <= MOST_ELEMENTS
        and not torch.compiler.is_compiling()
        and why_unavailable() is None
    )


def selective_scan_mamba_ssm(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Output (b, d, l) and last state (b, d, n); shapes and meaning as in `selective_scan`.

    Raises:
        ValueError: a tensor is not on a CUDA device, u is float64, or there are too many states or
            elements.
        RuntimeError: mamba-ssm is missing; or, in the backward pass, the last state has a gradient,
            which mamba-ssm would drop.
    """
    if (reason := why_unavailable()) is not None:
        raise RuntimeError(f"{reason} {HOW_TO_GET}")
    _check(u, A)
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    # It wants u's dtype for what has tokens, and float32 for the rest; it copies what is not
    # contiguous along the tokens.
    delta, B, C = (x.to(u.dtype) for x in (delta, B, C))
    z = None if z is None else z.to(u.dtype)
    A = A.float().contiguous()
    D, delta_bias = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
    y, last = selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus, True)
    return y, _NotDifferentiable.apply(last)


def _check(u: Tensor, A: Tensor) -> None:
    if u.device.type != "cuda":
        raise ValueError(f"u is on {u.device}; allowed for backend 'mamba_ssm' is a CUDA device.")
    if u.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"u has dtype {u.dtype}; allowed for backend 'mamba_ssm' are float32, float16, "
            "bfloat16."
        )
    if A.shape[1] > MOST_STATES:
        raise ValueError(
            f"A has shape {tuple(A.shape)}; allowed for backend 'mamba_ssm' is (d, n) with n up to "
            f"{MOST_STATES}."
        )
    if u.numel() > MOST_ELEMENTS:
        raise ValueError(
            f"u has {u.numel()} elements; allowed for backend 'mamba_ssm' are up to "
            f"{MOST_ELEMENTS}."
        )


class _NotDifferentiable(torch.autograd.Function):
    """mamba-ssm's backward pass ignores the last state's gradient; this one says so."""

    @staticmethod
    def forward(ctx, last):
        return last.clone()

    @staticmethod
    def backward(ctx, dlast):
        raise RuntimeError(
            "The last state has a gradient, which backend 'mamba_ssm' cannot pass on; "
            "allowed are the other backends."
        )
