"""The scan of a map in four orders, in Triton for CUDA: the operator; see `triton_kernels_2d`.

Each order reads the map where it lies and writes its part of y on the map's own grid. Parts are
added in a fixed order, as are those of the other sums: the same bits every time.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cpp import needs_grad
from .forward_mode import refuse_tangents
from .triton_scan import _dense, _power_of_two, check_served

TOKENS = 4  # of a segment
SEGMENTS = 32  # of a tile
CHANNELS = 16  # of a program, two whole sectors of float32
ELEMENTS = 512  # of a tile, segments x states x channels
ELEMENTS_OF_A_WARP = 128  # of one state: four channels for each lane, in one load
STATES_OF_A_WARP = 256  # of several: they share a lane's loads


def selective_scan_2d_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Output (b, d, h, w), channels-last; shapes and meaning as in `selective_scan_2d`.

    Raises:
        ValueError: a tensor is not on a CUDA device (or on the CPU, in Triton's interpreter), or u
            is float64.
        RuntimeError: Triton is missing.
    """
    check_served(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    tensors = (u, delta, A, B, C, D, delta_bias)
    y, _ = _selective_scan_2d_triton(*tensors, delta_softplus, needs_grad(*tensors))
    return y


def _kernels() -> ModuleType:
    from . import triton_kernels_2d

    return triton_kernels_2d


@torch.library.custom_op("monai_mamba::selective_scan_2d_triton", mutates_args=())
def _selective_scan_2d_triton(
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
    """y, and the states between that the backward pass needs (or nothing)."""
    plan = _plan(u, A)
    parts, saved = plan.parts(u), plan.saved(u, save_states)
    with torch.cuda.device_of(u):  # Triton launches on the current device
        plan.run(
            _kernels().forward, _of_orders(u), _view(_channels_last(delta)), A.contiguous(),
            _view(B), _view(C), _dense(D), _dense(delta_bias), _part_of_orders(parts),
            saved if save_states else None,
            SOFTPLUS=delta_softplus,
        )  # fmt: skip
    return _sum_of_orders(parts, u), saved


@_selective_scan_2d_triton.register_fake
def _(u, delta, A, B, C, D, delta_bias, delta_softplus, save_states):
    return _like(u), _plan(u, A).saved(u, save_states)


# An operator returns tensors only, so an absent argument's gradient is of no use; and none may
# share memory with another, so that B's and C's come as one, as do D's and delta_bias's.
@torch.library.custom_op("monai_mamba::selective_scan_2d_triton_backward", mutates_args=())
def _selective_scan_2d_triton_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, A, of B and C (b, 4, 2 n, h, w), of D and delta_bias (2, 4, d)."""
    plan = _plan(u, A)
    parts, ddelta = plan.parts(u), _like(delta)
    dA = saved.new_empty((plan.batch, *A.shape))
    vectors = saved.new_empty((2, plan.batch, 4, plan.d))
    maps = plan.maps(saved, plan.blocks)
    with torch.cuda.device_of(u):
        plan.run(
            _kernels().backward, _of_orders(u), _view(_channels_last(delta)), A.contiguous(),
            _view(B), _view(C), _dense(D), _dense(delta_bias), saved, _of_orders(dy),
            _part_of_orders(parts), _view(ddelta), dA, _view(maps.flatten(0, 1)), *vectors,
            SOFTPLUS=delta_softplus,
        )  # fmt: skip
    dA = dA.sum(0).to(A.dtype)
    return _sum_of_orders(parts, u), ddelta, dA, maps.sum(0), vectors.sum(1)


@_selective_scan_2d_triton_backward.register_fake
def _(dy, saved, u, delta, A, B, C, D, delta_bias, delta_softplus):
    plan = _plan(u, A)
    maps, vectors = plan.maps(saved, 1)[0], saved.new_empty((2, 4, plan.d))
    return _like(u), _like(delta), A.new_empty(A.shape), maps, vectors


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dy, _):
    refuse_tangents("triton", dy=dy)
    *tensors, saved = ctx.saved_tensors
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _selective_scan_2d_triton(*tensors, ctx.delta_softplus, True)[1]
    du, ddelta, dA, maps, vectors = _selective_scan_2d_triton_backward(
        dy, saved, *tensors, ctx.delta_softplus
    )
    grads = (du, ddelta, dA, *maps.chunk(2, 2), *vectors)
    given = zip(tensors, grads, strict=True)
    return *(None if x is None else grad.to(x.dtype) for x, grad in given), None, None


_selective_scan_2d_triton.register_autograd(_backward, setup_context=_save_for_backward)


class _Plan(NamedTuple):
    """The sizes of a scan, and how its programs share it."""

    batch: int
    d: int
    n: int
    height: int
    width: int
    states: int  # n as a power of two
    channels: int  # of a program
    blocks: int  # of channels
    segments: int  # of a tile
    all_segments: int  # of the four orders

    def run(self, kernel: Any, *tensors: Any, **options: int) -> None:
        programs = self.blocks * self.batch * 4
        of_a_warp = ELEMENTS_OF_A_WARP if self.states == 1 else STATES_OF_A_WARP
        warps = self.segments * self.states * self.channels // of_a_warp
        kernel[(programs,)](
            *tensors, self.batch, self.d, self.n, self.height, self.width,
            N=self.states, SEGMENTS=self.segments, CHANNELS=self.channels, TOKENS=TOKENS, **options,
            num_warps=max(1, warps),
        )  # fmt: skip

    def parts(self, u: Tensor) -> Tensor:
        """For each order's part of a sum of u's shape, (4, b, h, w, d)."""
        shape = (4, self.batch, self.height, self.width, self.d)
        return u.new_empty(shape, dtype=torch.float32)

    def maps(self, x: Tensor, parts: int) -> Tensor:
        """For parts of the gradients of B and C, (parts, b, 4, 2 n, h, w)."""
        shape = (parts, self.batch, 4, self.height, self.width, 2 * self.n)
        return x.new_empty(shape).movedim(-1, 3)

    def saved(self, u: Tensor, save_states: bool) -> Tensor:
        """For the state before each segment, or for nothing."""
        shape = (self.batch, self.all_segments, self.d, self.n) if save_states else (0,)
        return u.new_empty(shape, dtype=torch.float32)


def _plan(u: Tensor, A: Tensor) -> _Plan:
    batch, d, height, width = u.shape
    n = A.shape[2]
    states = _power_of_two(n)
    channels = min(CHANNELS, max(1, ELEMENTS // states), _power_of_two(d))
    of_rows, of_columns = height * -(-width // TOKENS), width * -(-height // TOKENS)
    longest = _power_of_two(max(of_rows, of_columns))
    segments = min(SEGMENTS, max(1, ELEMENTS // (states * channels)), longest)
    return _Plan(
        batch, d, n, height, width, states, channels, -(-d // channels), segments,
        2 * (of_rows + of_columns),
    )  # fmt: skip


def _like(x: Tensor) -> Tensor:
    """An empty tensor of x's shape, (..., c, h, w), with channels next to each other in memory.

    Not a view: what an operator returns may be added to in place.
    """
    c, height, width = x.shape[-3:]
    strides, size = [1, width * c, c], c * height * width
    for n in reversed(x.shape[:-3]):
        strides.insert(0, size)
        size *= n
    return x.new_empty_strided(x.shape, strides)


def _channels_last(x: Tensor) -> Tensor:
    """x (..., c, h, w), copied where its channels are not next to each other in memory.

    Where they are apart, a walk along columns would read a whole sector for each number.
    """
    return x if x.stride(-3) == 1 else x.movedim(-3, -1).contiguous().movedim(-1, -3)


def _sum_of_orders(parts: Tensor, u: Tensor) -> Tensor:
    total = _like(u)
    if u.dtype == parts.dtype:
        torch.sum(parts, 0, out=total.movedim(1, -1))
    else:
        total.movedim(1, -1).copy_(parts.sum(0))
    return total


def _view(x: Tensor) -> tuple[Tensor | int, ...]:
    """What a kernel takes for (b, 4, c, h, w) of any strides."""
    return x, *x.stride()


def _of_orders(x: Tensor) -> tuple[Tensor | int, ...]:
    """The same for (b, c, h, w), one map for all orders."""
    return _view(_channels_last(x).unsqueeze(1).expand(-1, 4, -1, -1, -1))


def _part_of_orders(x: Tensor) -> tuple[Tensor | int, ...]:
    """The same for (4, b, h, w, c)."""
    return _view(x.permute(1, 0, 4, 2, 3))
