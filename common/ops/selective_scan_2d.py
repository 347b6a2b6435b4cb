"""The selective scan of a map in four orders, summed: VMamba's cross-scan and cross-merge."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from .chunked import selective_scan_chunked
from .cpp_2d import selective_scan_2d_cpp
from .forward_mode import refuse_tangents
from .selective_scan import (
    BACKENDS,
    Backend,
    check_floating_point,
    chosen,
    plain,
    selective_scan,
)
from .triton_scan_2d import selective_scan_2d_triton


def selective_scan_2d(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Scan a map in four orders, each with its own step sizes and maps, and sum the four outputs.

    The orders are row by row, column by column, and both reversed (Liu et al. 2024,
    arXiv:2401.10166, section 4.2). All arguments lie on the map's own grid: delta[:, k, :, i, j]
    is the step size of site (i, j) in order k. See `selective_scan` for the recurrence.

    Args:
        u: input, (b, d, h, w).
        delta: step sizes, (b, 4, d, h, w).
        A: state decay, (4, d, n).
        B, C: input and output maps, (b, 4, n, h, w).
        D: skip weight, (4, d).
        delta_bias: added to delta before the softplus, (4, d).

        backend: as in `selective_scan`. "cpp" and "triton" read the map where it lies, the fastest
            where channels are next to each other in memory; the others copy it once per order.

    Returns:
        (b, d, h, w) in u's dtype, a plain tensor.

    Raises:
        ValueError: a shape, a dtype or the backend is not as above.
        RuntimeError: the named backend is missing; the message says what to install.
        NotImplementedError: a tensor has a forward-mode derivative, and the backend is not
            "reference".
    """
    _check(u, delta, A, B, C, D, delta_bias, backend)
    scan: Callable[..., Tensor] = functools.partial(_composition, backend=backend)
    served = chosen(backend, u, A, but_mamba_ssm=True)  # which needs the four copies
    if served in ("cpp", "triton"):
        refuse_tangents(served, u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
        scan = selective_scan_2d_cpp if served == "cpp" else selective_scan_2d_triton
    tensors = (plain(x) for x in (u, delta, A, B, C, D, delta_bias))
    return scan(*tensors, delta_softplus)


def _composition(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    backend: Backend,
) -> Tensor:
    scan = _to_sequences(u, delta, A, B, C, D, delta_bias)
    y = selective_scan(*scan, delta_softplus, backend=backend)
    return _sum_of_orders(cast(Tensor, y), u.shape[2], u.shape[3])


def selective_scan_2d_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The same in plain PyTorch; what TorchScript compiles."""
    u_, delta_, A_, B_, C_, D_, z_, bias_ = _to_sequences(u, delta, A, B, C, D, delta_bias)
    y = selective_scan_chunked(u_, delta_, A_, B_, C_, D_, z_, bias_, delta_softplus)[0]
    return _sum_of_orders(y, u.shape[2], u.shape[3])


def _to_sequences(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Arguments of one scan over 4 d channels in four groups."""
    return (
        _in_order(u.unsqueeze(1).expand(-1, 4, -1, -1, -1)).flatten(1, 2),
        _in_order(delta).flatten(1, 2),
        A.flatten(0, 1),
        _in_order(B),
        _in_order(C),
        None if D is None else D.flatten(),
        None,
        None if delta_bias is None else delta_bias.flatten(),
    )


def _in_order(x: Tensor) -> Tensor:
    """(b, 4, c, h, w) to (b, 4, c, h w), each of the four in its own order."""
    return torch.stack(
        (
            x[:, 0].flatten(2),
            x[:, 1].mT.flatten(2),
            x[:, 2].flatten(2).flip(-1),
            x[:, 3].mT.flatten(2).flip(-1),
        ),
        dim=1,
    )


def _sum_of_orders(y: Tensor, height: int, width: int) -> Tensor:
    """(b, 4 d, h w), each quarter in its own order, to (b, d, h, w)."""
    rows, columns, rows_reversed, columns_reversed = y.chunk(4, dim=1)
    y = (rows + rows_reversed.flip(-1)).unflatten(-1, [height, width])
    return y + (columns + columns_reversed.flip(-1)).unflatten(-1, [width, height]).mT


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    backend: str,
) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; allowed are {', '.join(BACKENDS)}.")
    if u.dim() != 4 or 0 in u.shape:
        raise ValueError(f"u has shape {tuple(u.shape)}; allowed is (b, d, h, w), none of them 0.")
    batch, d, height, width = u.shape
    if A.dim() != 3 or A.shape[:2] != (4, d) or A.shape[2] == 0:
        raise ValueError(f"A has shape {tuple(A.shape)}; allowed is (4, d, n) with d = {d}, n > 0.")
    maps = (batch, 4, A.shape[2], height, width)
    for name, x, shape in (
        ("delta", delta, (batch, 4, d, height, width)),
        ("B", B, maps),
        ("C", C, maps),
        ("D", D, (4, d)),
        ("delta_bias", delta_bias, (4, d)),
    ):
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; allowed is {shape}.")
    check_floating_point(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
