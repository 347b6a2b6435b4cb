"""The selective scan of Mamba: the public function, its backends, and the registered operator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import cpp, mamba_ssm_scan, native, triton_scan
from .chunked import selective_scan_chunked, selective_scan_chunked_backward
from .cpp import selective_scan_cpp
from .exported import selective_scan_exported
from .forward_mode import is_transformed, refuse_tangents
from .mamba_ssm_scan import selective_scan_mamba_ssm
from .reference import selective_scan_reference
from .triton_scan import selective_scan_triton

Backend = Literal["auto", "reference", "torch", "cpp", "triton", "mamba_ssm"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "torch", "cpp", "triton", "mamba_ssm")


class _Scope(NamedTuple):
    """What a backend is made for, and why this machine lacks it."""

    devices: tuple[str, ...] | None  # None is every device
    float64: bool
    missing: Callable[[], str | None]  # the reason, and what to install; None where it is there

    def covers(self, device: str, dtype: torch.dtype) -> bool:
        return (self.devices is None or device in self.devices) and (
            self.float64 or dtype != torch.float64
        )


def _missing(backend: ModuleType) -> Callable[[], str | None]:
    def missing() -> str | None:
        reason = backend.why_unavailable()
        return None if reason is None else f"{reason} {backend.HOW_TO_GET}"

    return missing


# The fastest first: "auto" takes the first that serves the arguments, but for mamba-ssm: whether it
# is faster depends on their shapes.
_SCOPES: dict[Backend, _Scope] = {
    "cpp": _Scope(("cpu",), False, _missing(native)),
    "triton": _Scope(("cuda",), False, _missing(triton_scan)),
    "torch": _Scope(None, True, lambda: None),
    "mamba_ssm": _Scope(("cuda",), False, _missing(mamba_ssm_scan)),
    "reference": _Scope(None, True, lambda: None),
}
_FASTER: tuple[Backend, ...] = ("cpp", "triton")  # than torch, many times


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a linear recurrence whose step, input and output maps depend on the token.

    With delta' = softplus(delta + delta_bias), or delta + delta_bias without `delta_softplus`::

        h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t,    h_0 = 0
        y_t = (C_t h_t + D u_t) SiLU(z_t)

    (Gu and Dao 2023, arXiv:2312.00752, section 3.2, algorithm 2, with the simplified
    discretisation of B that the released Mamba uses.) Same arguments, in the same order, as
    mamba-ssm's ``selective_scan_fn``. Differentiable in every tensor argument.

    Args:
        u, delta: input and step sizes, (b, d, l).
        A: state decay, (d, n), negative for a stable recurrence.
        B, C: input and output maps, (b, n, l), or (b, g, n, l) for g groups of d / g channels.
        D: skip weight, (d,).
        z: gate, (b, d, l).
        delta_bias: added to delta before the softplus, (d,).
        return_last_state: return h_l too, (b, d, n).
        backend: "cpp" is compiled, for the CPU and float32 or 16-bit floats; "triton" is the same
            for CUDA; "mamba_ssm" calls the package of that name, on CUDA; "torch" is chunked plain
            PyTorch; "reference" the sequential loop that defines the operation; "auto" the fastest
            that serves these arguments.

    Returns:
        y (b, d, l) in u's dtype, or (y, last state), plain tensors. Arithmetic is float64 where
        u is float64, else float32.

    Raises:
        ValueError: a shape, a dtype or the backend is not as above.
        RuntimeError: the named backend is missing; the message says what to install.
        NotImplementedError: a tensor has a forward-mode derivative, and the backend is not
            "reference".
    """
    _check(u, delta, A, B, C, D, z, delta_bias, backend)
    backend = chosen(backend, u, A, but_mamba_ssm=return_last_state)
    scan: Callable[..., tuple[Tensor, Tensor]] = _selective_scan
    if exporting():
        scan = selective_scan_exported
    elif backend == "reference":
        scan = selective_scan_reference
    elif backend == "cpp":
        scan = selective_scan_cpp
    elif backend == "triton":
        scan = selective_scan_triton
    elif backend == "mamba_ssm":
        scan = selective_scan_mamba_ssm
    if scan is not selective_scan_reference:
        refuse_tangents(backend, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    tensors = (plain(x) for x in (u, delta, A, B, C, D, z, delta_bias))
    y, last = scan(*tensors, delta_softplus)
    return (y, last) if return_last_state else y


def plain(x: Tensor | None) -> Tensor | None:
    """x as a torch.Tensor: MONAI's MetaTensor, say, goes through Python at every operation."""
    if x is None or type(x) in (Tensor, torch.nn.Parameter):
        return x
    if exporting():  # then x stands for a tensor, and is no subclass of another kind
        return x
    return x.as_subclass(Tensor)


def why_not(backend: Backend, device: str, dtype: torch.dtype) -> str | None:
    """Why a backend cannot serve tensors on a device ("cpu", "cuda") of a dtype, in a sentence.

    None where it can. For one that is missing, also what to install. May compile, once per process.
    """
    scope = _SCOPES[backend]
    if scope.covers(device, dtype):
        return scope.missing()
    if scope.devices is not None and device not in scope.devices:
        return f"it is made for {' and '.join(scope.devices)}."
    return "its arithmetic is float32."


def fastest_backend(device: str, dtype: torch.dtype) -> Backend:
    """What "auto" takes for tensors on a device ("cpu", "cuda") of a dtype."""
    return next(backend for backend in _SCOPES if why_not(backend, device, dtype) is None)


def chosen(backend: Backend, u: Tensor, A: Tensor, but_mamba_ssm: bool = False) -> Backend:
    """The backend that is named, or the fastest for these arguments.

    In torch.export it is "torch" whichever is named, as in TorchScript: what is exported runs on
    other machines, which may have neither a compiler nor this package.
    """
    if exporting():
        return "torch"
    return fastest(u, A, but_mamba_ssm) if backend == "auto" else backend


def fastest(u: Tensor, A: Tensor, but_mamba_ssm: bool = False) -> Backend:
    """What "auto" is for these arguments. Warns once where that is slower than need be, by far."""
    on_gpu = u.device.type == "cuda" and u.dtype != torch.float64
    if on_gpu and not but_mamba_ssm and mamba_ssm_scan.is_fastest(u, A):
        return "mamba_ssm"
    return _fastest_or_warn(u.device.type, u.dtype)


def exporting() -> bool:
    """Whether torch.export traces this."""
    return hasattr(torch.compiler, "is_exporting") and torch.compiler.is_exporting()


def served_in_cpp(*tensors: Tensor) -> bool:
    """Whether the C++ library takes these: of float32, on the CPU, not exported or transformed."""
    return (
        not exporting()
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not any(is_transformed(x) for x in tensors)
        and cpp.available()
    )


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """In it, operations on x's device keep their arguments' precision.

    In float16 a scan's input projections overflow, and norms and gates lose what they are for.
    """
    device = x.device.type
    # The meta device, say, has no autocast; and a program that has one cannot be saved.
    if exporting() or not torch.amp.is_autocast_available(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def dtype_of_products(x: Tensor, own: torch.dtype) -> torch.dtype:
    """What `mamba_mixer` is to have its products in, where a block leaves autocast for it.

    bfloat16 where autocast asks for that, on CUDA or the CPU: it has float32's range, and the
    convolution and the scan between the products stay float32. Else the dtype of the block's own
    parameters.
    """
    device = x.device.type
    if (
        device in ("cuda", "cpu")
        and own == torch.float32
        and not exporting()
        and torch.is_autocast_enabled(device)
        and torch.get_autocast_dtype(device) == torch.bfloat16
    ):
        return torch.bfloat16
    return own


@torch.compiler.assume_constant_result
def _fastest_or_warn(device: str, dtype: torch.dtype) -> Backend:
    global _warned
    backend = fastest_backend(device, dtype)
    if backend == "torch" and not _warned:
        whys = (why_not(b, device, dtype) for b in _FASTER if _SCOPES[b].covers(device, dtype))
        reasons = [reason for reason in whys if reason is not None]
        if reasons:
            _warned = True
            warnings.warn(
                f"The selective scan runs in plain PyTorch, many times slower: {' '.join(reasons)} "
                "`python -m common doctor` says more.",
                RuntimeWarning,
                stacklevel=5,  # the caller of selective_scan
            )
    return backend


_warned = False


@torch.library.custom_op("monai_mamba::selective_scan", mutates_args=())
def _selective_scan(
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
    return selective_scan_chunked(u, delta, A, B, C, D, z, delta_bias, delta_softplus)


@_selective_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    last = u.new_empty((u.shape[0], u.shape[1], A.shape[1]), dtype=dtype)
    return u.new_empty(u.shape), last


# An operator returns tensors only, so an absent argument's gradient is an empty one.
@torch.library.custom_op("monai_mamba::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    dlast: Tensor,
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
    grads = selective_scan_chunked_backward(
        dy, dlast, u, delta, A, B, C, D, z, delta_bias, delta_softplus
    )
    du, ddelta, dA, dB, dC, *rest = grads
    dD, dz, dbias = (u.new_empty(0) if grad is None else grad for grad in rest)
    return du, ddelta, dA, dB, dC, dD, dz, dbias


@_selective_scan_backward.register_fake
def _(dy, dlast, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    def like(x: Tensor | None) -> Tensor:
        return u.new_empty(0) if x is None else x.new_empty(x.shape)

    return tuple(like(x) for x in (u, delta, A, B, C, D, z, delta_bias))


def _save_for_backward(ctx, inputs, output):
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy, dlast):
    tensors = ctx.saved_tensors
    refuse_tangents("torch", dy=dy, dlast=dlast)
    grads = _selective_scan_backward(dy, dlast, *tensors, ctx.delta_softplus)
    return *(None if x is None else grad for x, grad in zip(tensors, grads, strict=True)), None


_selective_scan.register_autograd(_backward, setup_context=_save_for_backward)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    backend: str,
) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}.")
    if u.dim() != 3 or 0 in u.shape:
        raise ValueError(f"u has shape {tuple(u.shape)}; allowed is (b, d, l), none of them 0.")
    batch, d, length = u.shape
    if A.dim() != 2 or A.shape[0] != d or A.shape[1] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; allowed is (d, n) with d = {d}, n > 0.")
    n = A.shape[1]
    for name, x, shape in (
        ("delta", delta, (batch, d, length)),
        ("D", D, (d,)),
        ("z", z, (batch, d, length)),
        ("delta_bias", delta_bias, (d,)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed is {shape}.")
    for name, x in (("B", B), ("C", C)):
        groups = x.shape[1] if x.dim() == 4 else 1
        grouped = (batch, groups, n, length)
        if x.shape not in ((batch, n, length), grouped) or groups == 0 or d % groups:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}; allowed are {(batch, n, length)} and "
                f"({batch}, g, {n}, {length}) with g a divisor of {d}."
            )
    if B.shape != C.shape:
        raise ValueError(f"B has shape {tuple(B.shape)} and C {tuple(C.shape)}; they must agree.")
    check_floating_point(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def check_floating_point(**tensors: Tensor | None) -> None:
    """Raises ValueError where a tensor that is given holds no floating-point numbers."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise ValueError(f"{name} has dtype {x.dtype}; allowed are floating-point dtypes.")
