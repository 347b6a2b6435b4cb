"""Everything of a Mamba block between its input tokens and its output tokens, as one operation."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import causal_conv1d
from .chunked import selective_scan_chunked
from .mamba_mixer_cpp import mamba_mixer_cpp
from .mamba_mixer_triton import mamba_mixer_triton
from .selective_scan import Backend, check_floating_point, chosen, plain, selective_scan


def mamba_mixer(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
    *,
    products: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Mix tokens by a gated selective scan (Gu and Dao 2023, arXiv:2312.00752, figure 3)::

        u, z = split(in_proj x);    u = SiLU(causal_conv1d(u, conv_weight) + conv_bias)
        dt, B, C = split(x_proj u);    delta = dt_proj dt
        y = out_proj selective_scan(u, delta, A, B, C, D, z, dt_bias, delta_softplus=True)

    Differentiable in every tensor argument. This composition is the definition. Backend "cpp" does
    it for a few hundred tokens at a time, so that what lies between stays in the processor's
    cache; x_proj needs all channels of a token, so convolution and scan are two passes. Backend
    "triton" keeps only x for the backward pass. "mamba_ssm" convolves by the package
    causal-conv1d, where it is installed and k is 2 to 4.

    `products` is the dtype of the products and of what lies between them, whatever the weights'
    dtypes. "cpp" has all of it in float32; but where that dtype is bfloat16 and the processor has
    AMX, factors of the products are rounded to it, other than dt_proj's.

    Args:
        x: tokens, (b, l, c).
        in_proj: (2 d, c).
        conv_weight, conv_bias: depthwise kernel of k taps, (d, 1, k), the last for the token
            itself; (d,).
        x_proj: (r + 2 n, d), for steps of rank r and for B and C of n states.
        dt_proj, dt_bias: (d, r), (d,).
        A, D: state decay, (d, n); skip weight, (d,).
        out_proj: (c', d).
        products: see above; None is x's dtype.
        backend: as in `selective_scan`.

    Returns:
        (b, l, c') in x's dtype.

    Raises:
        ValueError: a shape, a dtype or the backend is not as above.
        RuntimeError: the named backend is missing; the message says what to install.
        NotImplementedError: a tensor has a forward-mode derivative, and the backend is not
            "reference".
    """
    _check(x, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    served = chosen(backend, x, A, but_mamba_ssm=True)  # whose scan needs copies of all
    products = x.dtype if products is None else products
    weights = (in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    if served == "cpp":
        return mamba_mixer_cpp(cast(Tensor, plain(x)), *weights, products=products)
    if products != x.dtype:
        return mamba_mixer(x.to(products), *weights, backend=backend).to(x.dtype)
    if served == "triton":
        return mamba_mixer_triton(cast(Tensor, plain(x)), *weights)
    in_proj, conv_weight, conv_bias, x_proj, dt_proj, out_proj = (
        weight if weight.dtype == x.dtype else weight.to(x.dtype)
        for weight in (in_proj, conv_weight, conv_bias, x_proj, dt_proj, out_proj)
    )
    u, z = _split_input(x, in_proj)
    if served == "mamba_ssm" and causal_conv1d.serves(u, conv_weight):
        u = causal_conv1d.causal_conv1d_silu(u, conv_weight, conv_bias)
    else:
        u = _convolve(u, conv_weight, conv_bias)
    delta, B, C = _maps(u, x_proj, dt_proj, A)
    y = selective_scan(u, delta, A, B, C, D, z, dt_bias, True, backend=backend)
    return F.linear(cast(Tensor, y).mT, out_proj)


def mamba_mixer_chunked(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
) -> Tensor:
    """The same in plain PyTorch; what TorchScript compiles."""
    u, z = _split_input(x, in_proj)
    u = _convolve(u, conv_weight, conv_bias)
    delta, B, C = _maps(u, x_proj, dt_proj, A)
    y = selective_scan_chunked(u, delta, A, B, C, D, z, dt_bias, True)[0]
    return F.linear(y.mT, out_proj)


def _split_input(x: Tensor, in_proj: Tensor) -> tuple[Tensor, Tensor]:
    """u before its convolution and z, (b, d, l)."""
    u, z = F.linear(x, in_proj).mT.chunk(2, dim=1)
    return u, z


def _convolve(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    d, _, taps = weight.shape
    return F.silu(F.conv1d(F.pad(u, [taps - 1, 0]), weight, bias, groups=d))


def _maps(u: Tensor, x_proj: Tensor, dt_proj: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """delta, B, C of the scan."""
    rank, n = dt_proj.shape[1], A.shape[1]
    dt, B, C = F.linear(u.mT, x_proj).split([rank, n, n], dim=-1)
    return F.linear(dt, dt_proj).mT, B.mT, C.mT


def _check(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
) -> None:
    for name, tensor, axes in (
        ("x", x, "(b, l, c)"),
        ("conv_weight", conv_weight, "(d, 1, k)"),
        ("dt_proj", dt_proj, "(d, r)"),
        ("A", A, "(d, n)"),
        ("out_proj", out_proj, "(c', d)"),
    ):
        if tensor.dim() != axes.count(",") + 1 or 0 in tensor.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; allowed is {axes}, none of them 0."
            )
    c, (d, n), rank, taps = x.shape[2], A.shape, dt_proj.shape[1], conv_weight.shape[2]
    for name, weight, shape in (
        ("in_proj", in_proj, (2 * d, c)),
        ("conv_weight", conv_weight, (d, 1, taps)),
        ("conv_bias", conv_bias, (d,)),
        ("x_proj", x_proj, (rank + 2 * n, d)),
        ("dt_proj", dt_proj, (d, rank)),
        ("dt_bias", dt_bias, (d,)),
        ("D", D, (d,)),
        ("out_proj", out_proj, (out_proj.shape[0], d)),
    ):
        if weight.shape != shape:
            raise ValueError(f"{name} has shape {tuple(weight.shape)}; allowed is {shape}.")
    check_floating_point(
        x=x,
        in_proj=in_proj,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        x_proj=x_proj,
        dt_proj=dt_proj,
        dt_bias=dt_bias,
        A=A,
        D=D,
        out_proj=out_proj,
    )
