"""The selective scan in Triton for CUDA: the operator around the kernels of `triton_kernels`.

The tokens are cut into chunks that run side by side where the channels alone would leave the GPU
idle: one pass finds what each chunk adds to the state, a short one carries states over the chunks,
and the last starts every chunk from its true state. The backward pass does the same with the
adjoint from the end, and needs the states that the forward pass saves every 8 tokens: n / 8 numbers
for each token and channel. Sums over channels, chunks and batch are kept in parts and added in a
fixed order: the same bits every time.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cpp import _like, needs_grad
from .forward_mode import refuse_tangents

OLDEST = (3, 5)  # earlier compilers do not take the kernels
HOW_TO_GET = (
    "Install Triton 3.5 or later (`pip install triton`, on Linux); "
    "CUDA builds of torch 2.9 and later bring it."
)
WARPS_PER_MULTIPROCESSOR = 16  # enough to hide the latency of loads
SHORTEST_CHUNK = 64  # tokens
STATES_OF_A_PROGRAM = 512  # 16 for each lane of its warp
FORWARD_TOKENS = 8  # of a tile
BACKWARD_TOKENS = 4  # fewer, as a program holds all their states in registers
SAVED_EVERY = 8  # tokens between saved states, a multiple of a tile's
CARRY_BLOCK = 32  # states, a warp's
CARRY_CHUNKS = 8  # of a warp at once
CARRY_SEGMENTS = 16  # warps


@functools.cache
def why_unavailable() -> str | None:
    """None where Triton can be imported and is recent enough, else the reason, as a sentence."""
    try:
        import triton
    except ImportError as error:
        return f"Triton is not available: {error}."
    if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
        return f"Triton is not available: {triton.__version__} is too old."
    return None


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


def selective_scan_triton(
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
        ValueError: a tensor is not on a CUDA device (or on the CPU, in Triton's interpreter), or u
            is float64.
        RuntimeError: Triton is missing.
    """
    check_served(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    y, last, _ = _selective_scan_triton(*tensors, delta_softplus, needs_grad(*tensors))
    return y, last


def check_served(**tensors: Tensor | None) -> None:
    """Raises what `selective_scan_triton` does for tensors, u the first, that it cannot take."""
    if (reason := _reason()) is not None:
        raise RuntimeError(f"{reason} {HOW_TO_GET}")
    allowed = "cpu" if _interpreted() else "cuda"
    given = {name: x for name, x in tensors.items() if x is not None}
    first, u = next(iter(given.items()))
    for name, x in given.items():
        if x.device.type != allowed or x.device != u.device:
            raise ValueError(
                f"{name} is on {x.device}; allowed for backend 'triton' is one {allowed} device."
            )
    if u.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"{first} has dtype {u.dtype}; allowed for backend 'triton' are float32, float16, "
            "bfloat16."
        )


@torch.compiler.assume_constant_result
def _reason() -> str | None:
    return why_unavailable()


@torch.compiler.assume_constant_result
def _interpreted() -> bool:
    from triton.runtime import JITFunction

    return not isinstance(_kernels().forward, JITFunction)


@torch.library.custom_op("monai_mamba::selective_scan_triton", mutates_args=())
def _selective_scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and what the backward pass needs of the states between (or nothing)."""
    return scan_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states)


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
    y: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as a plain function. y may be given, as the memory of u too."""
    kernels = _kernels()
    y, last, saved = _outputs(u, A, save_states, y)
    rates, skip, bias = A.contiguous(), _dense(D), _dense(delta_bias)
    plan = _plan(u, B, A.shape[1], FORWARD_TOKENS)
    with torch.cuda.device_of(u):  # Triton launches on the current device
        states = None
        if plan.chunks > 1:
            states, totals = plan.buffers(u)
            states[:, 0] = 0
            plan.run(
                kernels.chunk_states, _view(u), _view(delta), rates, _map(B), bias, states, totals,
                SOFTPLUS=delta_softplus,
            )  # fmt: skip
            plan.carry(kernels.carry, states, totals, rates, first=0, step=1)
        plan.run(
            kernels.forward, _view(u), _view(delta), rates, _map(B), _map(C), skip, _view(z), bias,
            states, _view(y), last, saved if save_states else None,
            SAVED=SAVED_EVERY, SOFTPLUS=delta_softplus,
        )  # fmt: skip
    return y, last, saved


@_selective_scan_triton.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states):
    return _outputs(u, A, save_states)


# An operator returns tensors only, so an absent argument's gradient is an empty one.
@torch.library.custom_op("monai_mamba::selective_scan_triton_backward", mutates_args=())
def _selective_scan_triton_backward(
    dy: Tensor,
    dlast: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, dz = _like(u), _like(delta), None if z is None else _like(z)
    return scan_backward(
        dy, dlast, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus, du, ddelta, dz
    )


def scan_backward(
    dy: Tensor,
    dlast: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    du: Tensor,
    ddelta: Tensor,
    dz: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same as a plain function, which writes to du, ddelta and dz.

    They may be the memory of u, delta and z: who reads a tile of these is who writes there, later.
    """
    kernels = _kernels()
    rates, skip, bias = A.contiguous(), _dense(D), _dense(delta_bias)
    plan = _plan(u, B, A.shape[1], BACKWARD_TOKENS)
    with torch.cuda.device_of(u):
        adjoints, totals = plan.buffers(u)
        adjoints[:, -1] = 0 if dlast is None else dlast
        if plan.chunks > 1:
            plan.run(
                kernels.chunk_adjoints, _view(delta), rates, _map(C), _view(z), bias, _view(dy),
                adjoints, totals,
                SOFTPLUS=delta_softplus,
            )  # fmt: skip
            plan.carry(kernels.carry, adjoints, totals, rates, first=plan.chunks - 1, step=-1)
        # Parts of sums; those of dA take the place of the adjoints, which their programs have read.
        maps = (plan.batch, plan.blocks, plan.groups, plan.length, plan.n)
        dB_parts, dC_parts = totals.new_empty(maps), totals.new_empty(maps)
        dD_parts, dbias_parts = torch.empty_like(totals), torch.empty_like(totals)
        plan.run(
            kernels.backward, _view(u), _view(delta), rates, _map(B), _map(C), skip, _view(z), bias,
            saved, _view(dy), adjoints, _view(du), _view(ddelta), _view(dz),
            adjoints, dB_parts, dC_parts, dD_parts, dbias_parts,
            SAVED=SAVED_EVERY, SOFTPLUS=delta_softplus,
        )  # fmt: skip
    dB = _map_gradient(dB_parts, B)
    del dB_parts
    nothing = u.new_empty(0)
    return (
        du,
        ddelta,
        adjoints.sum((0, 1)).to(A.dtype),
        dB,
        _map_gradient(dC_parts, C),
        nothing if D is None else dD_parts.sum((0, 1)).to(D.dtype),
        nothing.clone() if dz is None else dz,
        nothing.clone() if delta_bias is None else dbias_parts.sum((0, 1)).to(delta_bias.dtype),
    )


@_selective_scan_triton_backward.register_fake
def _(dy, dlast, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return _gradients(u, delta, A, B, C, D, z, delta_bias)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx, dy, dlast, _):
    refuse_tangents("triton", dy=dy, dlast=dlast)
    *tensors, saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _selective_scan_triton(*tensors, ctx.delta_softplus, True)[2]
    grads = _selective_scan_triton_backward(dy, dlast, saved, *tensors, ctx.delta_softplus)
    grads = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *grads, None, None


_selective_scan_triton.register_autograd(_backward, setup_context=_save_for_backward)


def _outputs(
    u: Tensor, A: Tensor, save_states: bool, y: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    batch, d, length = u.shape
    n = A.shape[1]
    saved = u.new_empty(0, dtype=torch.float32)
    if save_states:
        saved = saved.new_empty((batch, -(-length // SAVED_EVERY), d, n))
    return _like(u) if y is None else y, saved.new_empty((batch, d, n)), saved


def _gradients(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dD, dbias = (u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (D, delta_bias))
    dz = u.new_empty(0) if z is None else _like(z)
    dB, dC = (x.new_empty(x.mT.shape).mT for x in (B, C))  # token-major
    return _like(u), _like(delta), A.new_empty(A.shape), dB, dC, dD, dz, dbias


class _Plan(NamedTuple):
    """The sizes of a scan, and how its programs share it."""

    batch: int
    groups: int
    group_channels: int
    length: int
    n: int
    states: int  # n as a power of two
    channels: int  # of a program
    blocks: int  # of channels, in a group
    tokens: int  # of a tile
    chunks: int
    tiles: int  # of a chunk

    def run(self, kernel: Any, *tensors: Any, **options: int) -> None:
        programs = self.batch * self.groups * self.blocks * self.chunks
        kernel[(programs,)](
            *tensors, self.groups, self.group_channels, self.length, self.n, self.chunks,
            self.tiles,
            N=self.states, CHANNELS=self.channels, TOKENS=self.tokens, **options,
            num_warps=1,
        )  # fmt: skip

    def carry(self, kernel: Any, x: Tensor, totals: Tensor, A: Tensor, **order: int) -> None:
        d = self.groups * self.group_channels
        programs = self.batch * -(-d * self.n // CARRY_BLOCK)
        segments = min(CARRY_SEGMENTS, _power_of_two(-(-(self.chunks - 1) // CARRY_CHUNKS)))
        kernel[(programs,)](
            x, totals, A, d, self.n, self.chunks, **order,
            SEGMENTS=segments, CHUNKS=CARRY_CHUNKS, BLOCK=CARRY_BLOCK, num_warps=segments,
        )  # fmt: skip

    def buffers(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """A state per chunk (b, chunks, d, n), and a number per chunk (b, chunks, d)."""
        totals = u.new_empty((self.batch, self.chunks, u.shape[1]), dtype=torch.float32)
        return totals.new_empty((*totals.shape, self.n)), totals


def _plan(u: Tensor, B: Tensor, n: int, tokens: int) -> _Plan:
    batch, d, length = u.shape
    groups = B.shape[1] if B.dim() == 4 else 1
    states = _power_of_two(n)
    channels = min(32, max(1, STATES_OF_A_PROGRAM // states), _power_of_two(d // groups))
    blocks = -(-d // groups // channels)
    programs = batch * groups * blocks
    chunks = min(
        _multiprocessors(u) * WARPS_PER_MULTIPROCESSOR // programs, length // SHORTEST_CHUNK
    )
    if chunks < 3:  # states are computed twice where there is more than one chunk
        chunks = 1
    span = -(-length // chunks)
    tiles = -(-span // SAVED_EVERY) * SAVED_EVERY // tokens
    chunks = -(-length // (tiles * tokens))
    return _Plan(
        batch, groups, d // groups, length, n, states, channels, blocks, tokens, chunks, tiles
    )


def _multiprocessors(u: Tensor) -> int:
    if u.device.type != "cuda":  # Triton's interpreter
        return 1
    return torch.cuda.get_device_properties(u.device).multi_processor_count


def _power_of_two(x: int) -> int:
    """The next one, at least x."""
    return 1 << (x - 1).bit_length()


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _view(x: Tensor | None) -> tuple[Tensor | int, ...] | None:
    """What a kernel takes for a tensor of any strides."""
    return None if x is None else (x, *x.stride())


def _map(x: Tensor) -> tuple[Tensor | int, ...] | None:
    """The same for B or C, as (b, g, n, l)."""
    return _view(x.unsqueeze(1) if x.dim() == 3 else x)


def _map_gradient(parts: Tensor, x: Tensor) -> Tensor:
    """The sum of parts (b, blocks, g, l, n), as x, token-major."""
    total = parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)
    return total.mT.reshape(x.shape).to(x.dtype)
