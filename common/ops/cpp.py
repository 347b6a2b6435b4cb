"""The selective scan in C++ for the CPU: the operator around the library of `native`.

Arithmetic is float32: 16-bit floats are converted here, before the operator. Outputs and gradients
are allocated here, with the memory layout of the tensor they belong to: tokens that come
channels-last stay so.

Threads are torch's own, so what holds for torch's operations after a fork holds here: in a child of
a process that has used several, one that uses several waits for ever (GNU's OpenMP leaves its
threads behind). Workers of a DataLoader use one each and are safe; other children have to call
torch.set_num_threads(1), or to be spawned.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from . import native
from .forward_mode import refuse_tangents

# csrc/tiles.h has the same: tokens between saved states, channels a group is padded to.
TILE, PAD = 64, 16
_highest_isa = len(native.INSTRUCTION_SETS) - 1  # tests lower it


def selective_scan_cpp(
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
        ValueError: a tensor is not on the CPU, or u is float64.
        RuntimeError: the library is missing and cannot be built.
    """
    single, needs_grad = _to_single(
        u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias
    )
    y, last, _ = _selective_scan_cpp(*single, delta_softplus, needs_grad)
    return y.to(u.dtype), last


def _to_single(u: Tensor, **others: Tensor | None) -> tuple[list[Tensor | None], bool]:
    """All arguments in float32, and whether one of them asks for a gradient.

    Raises:
        ValueError: a tensor is not on the CPU, or u is float64.
    """
    tensors = {"u": u, **others}
    for name, x in tensors.items():
        if x is not None and x.device.type != "cpu":
            raise ValueError(f"{name} is on {x.device}; allowed for backend 'cpp' is the CPU.")
    if u.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"u has dtype {u.dtype}; allowed for backend 'cpp' are float32, float16, bfloat16."
        )
    single = [None if x is None else x.float() for x in tensors.values()]
    return single, needs_grad(*tensors.values())


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors asks for a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


@torch.library.custom_op("monai_mamba::selective_scan_cpp", mutates_args=(), device_types="cpu")
def _selective_scan_cpp(
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
    y, last, saved = _outputs(u, A, B, save_states)
    scan = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    scan.y, scan.last = _view(y, "bcl"), _view(last, "bcn")
    if save_states:
        scan.saved = _View(data=saved.data_ptr())
    _run("selective_scan_forward", scan)
    return y, last, saved


@_selective_scan_cpp.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, save_states):
    return _outputs(u, A, B, save_states)


# An operator returns tensors only, so an absent argument's gradient is an empty one.
@torch.library.custom_op(
    "monai_mamba::selective_scan_cpp_backward", mutates_args=(), device_types="cpu"
)
def _selective_scan_cpp_backward(
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
    grads = _gradients(u, delta, A, B, C, D, z, delta_bias)
    du, ddelta, dA, dB, dC, dD, dz, dbias = grads
    scan = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    scan.saved = _View(data=saved.data_ptr())
    scan.dy, scan.dlast = _view(dy, "bcl"), _view(dlast, "bcn")
    scan.du, scan.ddelta, scan.dA = _view(du, "bcl"), _view(ddelta, "bcl"), _view(dA, "cn")
    maps = "bcnl" if B.dim() == 4 else "bnl"
    scan.dB, scan.dC = _view(dB, maps), _view(dC, maps)
    if D is not None:
        scan.dD = _view(dD, "c")
    if z is not None:
        scan.dz = _view(dz, "bcl")
    if delta_bias is not None:
        scan.dbias = _view(dbias, "c")
    _run("selective_scan_backward", scan)
    return grads


@_selective_scan_cpp_backward.register_fake
def _(dy, dlast, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    return _gradients(u, delta, A, B, C, D, z, delta_bias)


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx, dy, dlast, _):
    refuse_tangents("cpp", dy=dy, dlast=dlast)
    *tensors, saved = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(tensors[0])
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _selective_scan_cpp(*tensors, ctx.delta_softplus, True)[2]
    grads = _selective_scan_cpp_backward(dy, dlast, saved, *tensors, ctx.delta_softplus)
    grads = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *grads, None, None


_selective_scan_cpp.register_autograd(_backward, setup_context=_save_for_backward)


def _outputs(u: Tensor, A: Tensor, B: Tensor, save_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, d, length = u.shape
    n = A.shape[1]
    saved = u.new_empty(0)
    if save_states:
        groups = B.shape[1] if B.dim() == 4 else 1
        saved = _states_between(u, batch, length, d // groups, groups, n)
    return _like(u), u.new_empty((batch, d, n)), saved


def _states_between(
    x: Tensor, batch: int, length: int, group_channels: int, groups: int, n: int
) -> Tensor:
    """Memory for the states between tiles: zeros where padding would be left as it was found."""
    padded = (group_channels + PAD - 1) // PAD * PAD
    shape = (batch, (length + TILE - 1) // TILE, padded * groups, n)
    return x.new_empty(shape) if padded == group_channels else x.new_zeros(shape)


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
    dD, dbias = (u.new_empty(0 if x is None else x.shape) for x in (D, delta_bias))
    dz = u.new_empty(0) if z is None else _like(z)
    dB, dC = (x.new_empty(x.mT.shape).mT for x in (B, C))  # token-major
    return _like(u), _like(delta), A.new_empty(A.shape), dB, dC, dD, dz, dbias


def _like(x: Tensor) -> Tensor:
    """An empty (b, d, l), dense, channels-last where x's channels are next to each other."""
    _, d, length = x.shape
    if x.stride(1) == 1 and x.stride(2) != 1:
        # Not a view: what an operator returns may be added to in place.
        return x.new_empty_strided(x.shape, (length * d, 1, d))
    return x.new_empty(x.shape)


class _View(ctypes.Structure):
    """A tensor: its address and its strides.

    By batch, order (k), channel or group, row and column of the grid (h, l), and state.
    """

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((axis, ctypes.c_int64) for axis in "bkchln"),
    )


class _Scan(ctypes.Structure):
    """The arguments of the library's functions, in csrc/selective_scan.h's order."""

    _fields_ = (
        *(
            (size, ctypes.c_int64)
            for size in ("batch", "channels", "groups", "height", "width", "states")
        ),
        *(
            (number, ctypes.c_int32)
            for number in ("orders", "order", "softplus", "threads", "isa", "unused")
        ),
        *((x, _View) for x in ("u", "delta", "A", "B", "C", "D", "z", "bias", "y", "last")),
        *((x, _View) for x in ("saved", "dy", "dlast", "du", "ddelta", "dA", "dB", "dC", "dD")),
        *((x, _View) for x in ("dz", "dbias")),
    )


def _view(x: Tensor | None, axes: str) -> _View:
    if x is None:
        return _View()
    if x.dtype != torch.float32:
        raise ValueError(f"An argument has dtype {x.dtype}; allowed here is float32.")
    return _View(data=x.data_ptr(), **dict(zip(axes, x.stride(), strict=True)))


def _arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> _Scan:
    maps = "bcnl" if B.dim() == 4 else "bnl"
    return _Scan(
        batch=u.shape[0],
        channels=u.shape[1],
        groups=B.shape[1] if B.dim() == 4 else 1,
        height=1,
        width=u.shape[2],
        states=A.shape[1],
        orders=1,
        softplus=delta_softplus,
        threads=torch.get_num_threads(),
        isa=_highest_isa,
        u=_view(u, "bcl"),
        delta=_view(delta, "bcl"),
        A=_view(A, "cn"),
        B=_view(B, maps),
        C=_view(C, maps),
        D=_view(D, "c"),
        z=_view(z, "bcl"),
        bias=_view(delta_bias, "c"),
    )


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the library is there or can be built. May compile, once per process."""
    return native.why_unavailable() is None


def _run(function: str, arguments: ctypes.Structure) -> None:
    library = _with_torchs_threads(native.library())
    failure = getattr(library, function)(ctypes.byref(arguments))  # ctypes lets go of the GIL
    if failure == 1:
        raise MemoryError(f"{function} could not allocate its working memory")
    if failure == 2:
        raise ValueError(f"{function} was given a size of 0; allowed are sizes from 1.")


def _expect_writes(x: Tensor) -> None:
    """Say that dense, fresh x is about to be written, so that large ones get huge pages."""
    native.library().selective_scan_expect_writes(
        ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel())
    )


@functools.cache
def _with_torchs_threads(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, told to run its tasks on torch's own OpenMP threads.

    Those spin for a while after a matrix product, and threads of ours would fight them for cores.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    with contextlib.suppress(OSError, AttributeError):  # other names on macOS: own threads, then
        team = ctypes.CDLL(str(path)).GOMP_parallel  # found in whichever OpenMP torch is linked to
        library.selective_scan_use_team(ctypes.cast(team, ctypes.c_void_p))
    return library
