"""The convolution of the package causal-conv1d, where that is installed: CUDA only."""

from __future__ import annotations

import functools

from torch import Tensor

from .forward_mode import refuse_tangents
from .mamba_ssm_scan import MOST_ELEMENTS

HOW_TO_GET = (
    "Install it with: pip install causal-conv1d --no-build-isolation "
    "(it is compiled on your machine, with the CUDA toolkit)."
)
FEWEST_TAPS, MOST_TAPS = 2, 4


@functools.cache
def why_unavailable() -> str | None:
    """None where causal-conv1d can be imported, else the reason, as a sentence."""
    try:
        import causal_conv1d  # noqa: F401
    except (ImportError, OSError) as error:  # an extension built for another torch is either
        return f"causal-conv1d is not available: {error}."
    return None


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the package is there and takes these shapes."""
    return (
        FEWEST_TAPS <= weight.shape[2] <= MOST_TAPS
        and x.numel() <= MOST_ELEMENTS
        and why_unavailable() is None
    )


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU(causal_conv1d(x, weight) + bias), (b, d, l); weight (d, 1, k), bias (d,)."""
    refuse_tangents("mamba_ssm", x=x, conv_weight=weight, conv_bias=bias)
    from causal_conv1d import causal_conv1d_fn

    # Channels-last it takes multiples of 8 only; mamba-ssm's scan would copy that anyway.
    return causal_conv1d_fn(x.contiguous(), weight.squeeze(1), bias, activation="silu")
