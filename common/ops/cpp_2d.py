"""The scan of a map in four orders, in C++ for the CPU: the operator; see `cpp`.

The map is read where it lies, once per order, and the outputs are summed in place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpp
from .cpp import _run, _Scan, _states_between, _to_single, _view
from .forward_mode import refuse_tangents


def selective_scan_2d_cpp(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Output (b, d, h, w); shapes and meaning as in `selective_scan_2d`.

    Raises:
        ValueError: a tensor is not on the CPU, or u is float64.
        RuntimeError: the library is missing and cannot be built.
    """
    single, needs_grad = _to_single(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    y, _ = _selective_scan_2d_cpp(*single, delta_softplus, needs_grad)
    return y.to(u.dtype)


@torch.library.custom_op("monai_mamba::selective_scan_2d_cpp", mutates_args=(), device_types="cpu")
def _selective_scan_2d_cpp(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """y, and what the backward pass needs of the states between (or nothing)."""
    y, saved = _outputs(u, A, save_states)
    scan = _arguments(u, delta, A, B, C, D, delta_bias, delta_softplus)
    scan.y = _view(y, "bchl")
    if save_states:
        scan.saved = _view(saved, "kn")
    _run("selective_scan_forward", scan)
    return y, saved


@_selective_scan_2d_cpp.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus, save_states):
    return _outputs(u, A, save_states)


# An operator returns tensors only, so an absent argument's gradient is an empty one.
@torch.library.custom_op(
    "monai_mamba::selective_scan_2d_cpp_backward", mutates_args=(), device_types="cpu"
)
def _selective_scan_2d_cpp_backward(
    dy: Tensor,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _gradients(u, delta, A, B, C, D, delta_bias)
    du, ddelta, dA, dB, dC, dD, dbias = grads
    scan = _arguments(u, delta, A, B, C, D, delta_bias, delta_softplus)
    scan.saved = _view(saved, "kn")
    scan.dy, scan.du, scan.ddelta = _view(dy, "bchl"), _view(du, "bchl"), _view(ddelta, "bkchl")
    scan.dA, scan.dB, scan.dC = _view(dA, "kcn"), _view(dB, "bknhl"), _view(dC, "bknhl")
    if D is not None:
        scan.dD = _view(dD, "kc")
    if delta_bias is not None:
        scan.dbias = _view(dbias, "kc")
    _run("selective_scan_backward", scan)
    return grads


@_selective_scan_2d_cpp_backward.register_fake
def _(dy, saved, u, delta, A, B, C, D, delta_bias, delta_softplus):
    return _gradients(u, delta, A, B, C, D, delta_bias)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dy, _):
    refuse_tangents("cpp", dy=dy)
    *tensors, saved = ctx.saved_tensors
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _selective_scan_2d_cpp(*tensors, ctx.delta_softplus, True)[1]
    grads = _selective_scan_2d_cpp_backward(dy, saved, *tensors, ctx.delta_softplus)
    grads = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *grads, None, None


_selective_scan_2d_cpp.register_autograd(_backward, setup_context=_save_for_backward)


def _outputs(u: Tensor, A: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    batch, d, height, width = u.shape
    saved = u.new_empty(0)
    if save_states:
        saved = _states_between(u, 4 * batch, height * width, d, 1, A.shape[2]).view(4, -1)
    return torch.empty_like(u), saved


def _gradients(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, _, n, height, width = B.shape
    dB, dC = (
        x.new_empty((4, batch, height, width, n)).permute(1, 0, 4, 2, 3)  # an order's together
        for x in (B, C)
    )
    dD, dbias = (u.new_empty(0 if x is None else x.shape) for x in (D, delta_bias))
    return torch.empty_like(u), torch.empty_like(delta), A.new_empty(A.shape), dB, dC, dD, dbias


def _arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Scan:
    return _Scan(
        batch=u.shape[0],
        channels=u.shape[1],
        groups=1,
        height=u.shape[2],
        width=u.shape[3],
        states=A.shape[2],
        orders=4,
        softplus=delta_softplus,
        threads=torch.get_num_threads(),
        isa=cpp._highest_isa,
        u=_view(u, "bchl"),
        delta=_view(delta, "bkchl"),
        A=_view(A, "kcn"),
        B=_view(B, "bknhl"),
        C=_view(C, "bknhl"),
        D=_view(D, "kc"),
        bias=_view(delta_bias, "kc"),
    )
