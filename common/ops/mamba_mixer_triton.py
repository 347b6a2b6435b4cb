"""`mamba_mixer` on CUDA: torch's matrix products around the convolution and the scan in Triton.

Nothing but x and the weights is kept for the backward pass, which computes the rest again, and the
scan with the states that its gradient needs. To keep xz would be 2 d numbers a token; with d = 2 c
it is 8 c^2 operations to compute again, beside 36 c^2 for the other products of in- and output. By
the numbers of an H100 (3 TB/s; 60 and 800 TFLOP/s in float32 and bfloat16) that is 4 % of the
block's time at c = 32, and at c = 512, where there are few tokens, 14 % in float32 and 4 % in
bfloat16.

The scan's gradients take the memory of what they are the gradients of, and u is convolved again
after it. So at the peak, while the scan goes back, there are for each token and channel xz, u,
delta and the gradient of y (5 numbers), and in float32 saved states (n / 8) and parts of the
gradients of B and C (n / 16).

x's dtype is that of the products and of what lies between them. Convolution, softplus and scan are
float32, and so are all states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .forward_mode import refuse_tangents
from .mamba_mixer_cpp import _Weights
from .triton_conv import causal_conv, causal_conv_backward
from .triton_scan import check_served, scan_backward, scan_forward


def mamba_mixer_triton(x: Tensor, *weights: Tensor) -> Tensor:
    """Arguments, shapes and meaning as in `mamba_mixer`.

    Raises:
        ValueError: a tensor is not on a CUDA device (or on the CPU, in Triton's interpreter), or x
            is float64.
        RuntimeError: Triton is missing.
        NotImplementedError: a tensor has a forward-mode derivative.
    """
    given = _Weights(*weights)
    check_served(x=x, **given._asdict())
    refuse_tangents("triton", x=x, **given._asdict())
    given = given._replace(
        in_proj=given.in_proj.to(x.dtype),
        x_proj=given.x_proj.to(x.dtype),
        dt_proj=given.dt_proj.to(x.dtype),
        out_proj=given.out_proj.to(x.dtype),
    )
    return _mamba_mixer_triton(x, *given)


@torch.library.custom_op("monai_mamba::mamba_mixer_triton", mutates_args=())
def _mamba_mixer_triton(
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
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    with torch.autocast(x.device.type, enabled=False):
        xz, u, maps, delta = _before_scan(x, weights)
        scan_forward(*_arguments(xz, u, maps, delta, weights), save_states=False, y=u.mT)
        del xz, maps, delta
        return _linear(u, out_proj)


@_mamba_mixer_triton.register_fake
def _(x, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj):
    return x.new_empty((*x.shape[:2], out_proj.shape[0]))


@torch.library.custom_op("monai_mamba::mamba_mixer_triton_backward", mutates_args=())
def _mamba_mixer_triton_backward(
    dout: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    d, rank = dt_proj.shape
    with torch.autocast(x.device.type, enabled=False):
        xz, u, maps, delta = _before_scan(x, weights)
        arguments = _arguments(xz, u, maps, delta, weights)
        y, _, saved = scan_forward(*arguments, save_states=True)
        dout_proj = _weight_gradient(dout, y.mT)
        del y

        dy = _times(dout, out_proj)
        du, ddelta, dz = u, delta, xz[..., d:]
        _, _, dA, dB, dC, dD, _, ddt_bias = scan_backward(
            dy.mT, None, saved, *arguments, du.mT, ddelta.mT, dz.mT
        )
        del dy, saved

        dmaps = torch.cat([_times(ddelta, dt_proj), dB.mT, dC.mT], dim=-1)
        ddt_proj = _weight_gradient(ddelta, maps[..., :rank])
        before, u = xz[..., :d].mT, torch.empty_like(du)
        causal_conv(before, conv_weight, conv_bias, u.mT)
        dx_proj = _weight_gradient(dmaps, u)
        _rows(du).addmm_(_rows(dmaps), x_proj)

        dconv = u
        dconv_weight, dconv_bias = causal_conv_backward(
            du.mT, before, conv_weight, conv_bias, dconv.mT
        )
        din_proj = torch.cat([_weight_gradient(dconv, x), _weight_gradient(dz, x)])
        dx = _times(dconv, in_proj[:d])
        _rows(dx).addmm_(_rows(dz), in_proj[d:])
    grads = (din_proj, dconv_weight, dconv_bias, dx_proj, ddt_proj, ddt_bias, dA, dD, dout_proj)
    return dx, *grads


@_mamba_mixer_triton_backward.register_fake
def _(dout, x, *weights):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, *weights))


def _save_for_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    refuse_tangents("triton", dout=dout)
    return _mamba_mixer_triton_backward(dout, *ctx.saved_tensors)


_mamba_mixer_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _before_scan(x: Tensor, weights: _Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """xz (b, l, 2 d), u (b, l, d), the projections dt, B, C side by side, and delta (b, l, d)."""
    d, rank = weights.dt_proj.shape
    xz = _linear(x, weights.in_proj)
    u = xz.new_empty((*xz.shape[:2], d))
    causal_conv(xz[..., :d].mT, weights.conv_weight, weights.conv_bias, u.mT)
    maps = _linear(u, weights.x_proj)
    return xz, u, maps, _linear(maps[..., :rank], weights.dt_proj)


def _arguments(
    xz: Tensor, u: Tensor, maps: Tensor, delta: Tensor, weights: _Weights
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
    """Of the scan."""
    (d, rank), n = weights.dt_proj.shape, weights.A.shape[1]
    _, B, C = maps.split([rank, n, n], dim=-1)
    z = xz[..., d:]
    return (
        u.mT, delta.mT, weights.A, B.mT, C.mT, weights.D, z.mT, weights.dt_bias, True
    )  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    """A token each; a view where x's strides allow it."""
    return x.reshape(-1, x.shape[-1])


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    return _times(x, weight.t())


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    # Not a view of the product: what an operator returns may be added to in place.
    out = x.new_empty((*x.shape[:2], matrix.shape[1]))
    torch.mm(_rows(x), matrix, out=_rows(out))
    return out


def _weight_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """Of the weight that takes x to y."""
    return torch.mm(_rows(dy).t(), _rows(x))
