"""The selective scan for torch.export and ONNX: plain PyTorch whose loops stay loops.

A loop of Python is unrolled in an exported program, once for each of a volume's tokens. Torch's
scan operator keeps it as one node (in ONNX as Scan), whatever the length. The sequence is cut into
K chunks that advance side by side; as in `chunked`, a first pass finds what each adds to the state,
a loop over the chunks carries states, and a last pass starts every chunk from its true state.
Nothing of size b d l n exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_BUDGET = 1 << 20  # elements of a step's state, for one item


def selective_scan_exported(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output (b, d, l) and last state (b, d, n); shapes and meaning as in `selective_scan`."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, A, delta = u.to(dtype), A.to(dtype), delta.to(dtype)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype).unsqueeze(-1)
    if delta_softplus:
        delta = F.softplus(delta)
    y, last = _scan(delta * x, delta, A, *(_with_groups(m.to(dtype)) for m in (B, C)))
    if D is not None:
        y = y + D.to(dtype).unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype), last


def _with_groups(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 3 else x


def _scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = C_t h_t (b, d, l) and the last state; x = delta u, (b, d, l); B, C (b, g, n, l)."""
    d, n = A.shape
    length, groups = x.shape[2], B.shape[1]
    tokens, chunks = _chunking(length, d * n)
    A = A.view(groups, d // groups, n)
    x, delta = (
        _to_chunks(s.unflatten(1, [groups, d // groups]), tokens, chunks).unsqueeze(-1)
        for s in (x, delta)
    )  # (T, K, b, g, d / g, 1)
    B, C = (_to_chunks(m, tokens, chunks).unsqueeze(-2) for m in (B, C))  # (T, K, b, g, 1, n)
    nothing = x.new_zeros(chunks, x.shape[2], groups, d // groups, n)
    added, _ = _loop(_advance, nothing, (x, delta, B), (A,))
    last, (before,) = _loop(_hand_over, nothing[0], (delta.sum(0), added), (A,))
    _, (y,) = _loop(_advance_and_read, before, (x, delta, B, C), (A,))  # (T, K, b, g, d / g)
    y = y.permute(2, 3, 4, 1, 0).flatten(3).flatten(1, 2)
    return y[..., :length], last.flatten(1, 2)


def _advance(h: Tensor, x: Tensor, delta: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    return (torch.exp(delta * A) * h + x * B,)


def _advance_and_read(
    h: Tensor, x: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, ...]:
    h = torch.exp(delta * A) * h + x * B
    return h, (h * C).sum(-1)


def _hand_over(h: Tensor, delta: Tensor, added: Tensor, A: Tensor) -> tuple[Tensor, ...]:
    return torch.exp(delta * A) * h + added, h.clone()


def _loop(
    step: Callable[..., tuple[Tensor, ...]],
    state: Tensor,
    inputs: tuple[Tensor, ...],
    constants: tuple[Tensor, ...],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The last state, and what else `step` gave, stacked, along the first axis of the inputs."""
    if torch.compiler.is_dynamo_compiling():  # a strict export
        from torch._higher_order_ops.scan import scan

        def combine(h: Tensor, x: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
            h, *outputs = step(h, *x, *constants)
            return h, outputs

        last, outputs = scan(combine, state, inputs)
        return last, tuple(outputs)
    last, *outputs = torch.ops.higher_order.scan(step, (state,), inputs, constants)
    return last, tuple(outputs)


def _chunking(length: int, width: int) -> tuple[int, int]:
    """Tokens per chunk T and number of chunks K: few steps, 2 T + K, on states of width K."""
    chunks = max(1, min(math.isqrt(2 * length), _BUDGET // width))
    tokens = -(-length // chunks)
    return tokens, -(-length // tokens)


def _to_chunks(x: Tensor, tokens: int, chunks: int) -> Tensor:
    """(..., l) to (T, K, ...), so that one step of all chunks reads one slab."""
    x = F.pad(x, [0, tokens * chunks - x.shape[-1]])
    return x.unflatten(-1, [chunks, tokens]).movedim(-1, 0).movedim(-1, 1).contiguous()
