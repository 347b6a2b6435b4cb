"""The selective scan in plain PyTorch: any device, float64 too, memory bounded.

The sequence is cut into K chunks of T tokens that advance side by side: T steps instead of l.
One pass finds the state that each chunk adds, a short loop carries states over the K chunks, and
a second pass starts every chunk from its true state. Decays are multiplied and never divided, so
nothing underflows into a quotient. Chunks are processed in blocks: the largest temporary has
about a million elements, never b d l n.

`selective_scan_chunked` and what it calls is also what TorchScript compiles: keep it within that
subset of Python.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_chunked(
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
    x, A = u.to(dtype), A.to(dtype)
    y, last = _scan(
        x,
        _step_sizes(delta.to(dtype), delta_bias, delta_softplus),
        A,
        _with_groups(B.to(dtype)),
        _with_groups(C.to(dtype)),
    )
    if D is not None:
        y = y + D.to(dtype).unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(u.dtype).contiguous(), last


def selective_scan_chunked_backward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, in their arguments' shapes and dtypes."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, dy = u.to(dtype), dy.to(dtype)
    raw_delta = delta.to(dtype)
    steps = _step_sizes(raw_delta, delta_bias, delta_softplus)
    gate = None if z is None else z.to(dtype)
    dy_ungated = dy if gate is None else dy * F.silu(gate)
    y, dx, dsteps, dA, dB, dC = _scan_backward(
        dy_ungated,
        dlast.to(dtype),
        x,
        steps,
        A.to(dtype),
        _with_groups(B.to(dtype)),
        _with_groups(C.to(dtype)),
    )
    dD = dz = dbias = None
    if D is not None:
        skip = D.to(dtype).unsqueeze(-1)
        y = y + skip * x
        dx = dx + skip * dy_ungated
        dD = (dy_ungated * x).sum((0, 2)).to(D.dtype)
    if z is not None and gate is not None:
        s = torch.sigmoid(gate)
        dz = (dy * y * s * (1 + gate * (1 - s))).to(z.dtype).contiguous()
    if delta_softplus:
        # sigmoid(raw + bias) = 1 - exp(-softplus(raw + bias))
        dsteps = dsteps * -torch.expm1(-steps)
    if delta_bias is not None:
        dbias = dsteps.sum((0, 2)).to(delta_bias.dtype)
    return (
        dx.to(u.dtype).contiguous(),
        dsteps.to(delta.dtype).contiguous(),
        dA.to(A.dtype),
        dB.reshape(B.shape).to(B.dtype),
        dC.reshape(C.shape).to(C.dtype),
        dD,
        dz,
        dbias,
    )


def _step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta.dtype).unsqueeze(-1)
    return F.softplus(delta) if delta_softplus else delta


def _with_groups(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.dim() == 3 else x


def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = C_t h_t (b, d, l) and the last state; u, delta (b, d, l), B, C (b, g, n, l)."""
    length = u.shape[2]
    tokens, chunks, block = _chunking(u, A.shape[1])
    u, delta = _to_chunks(u, tokens, chunks), _to_chunks(delta, tokens, chunks)  # (T, K, b, d)
    B, C = _to_chunks(B, tokens, chunks), _to_chunks(C, tokens, chunks)  # (T, K, b, g, n)
    states = _states_between_chunks(u, delta, A, B, block)
    y = torch.empty_like(u)
    for k in range(0, chunks, block):
        end = min(k + block, chunks)
        decay, x = _decay_and_input(u[:, k:end], delta[:, k:end], A, B[:, k:end])
        x[0] += decay[0] * states[k:end]
        y[:, k:end] = _sum_over_states(_carry(decay, x), C[:, k:end])
    return _from_chunks(y, length), states[chunks].clone()


def _scan_backward(
    dy: Tensor, dlast: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y again, then the gradients of u, delta, A, B, C.

    The adjoint g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1} runs backwards over the same chunks.
    """
    length = u.shape[2]
    tokens, chunks, block = _chunking(u, A.shape[1])
    dy, u, delta = (_to_chunks(x, tokens, chunks) for x in (dy, u, delta))
    B, C = _to_chunks(B, tokens, chunks), _to_chunks(C, tokens, chunks)
    groups = B.shape[3]
    states = _states_between_chunks(u, delta, A, B, block)

    # What each chunk's adjoint hands to the chunk before it, carried from the last to the first.
    handed = torch.empty_like(states[1:])
    for k in range(0, chunks, block):
        part = slice(k, k + block)
        decay, g = _decay_and_input(dy[:, part], delta[:, part], A, C[:, part], by_delta=False)
        handed[part] = _carry_back(decay, g)[0] * decay[0]
    chunk_decay = _chunk_decay(delta, A)
    after = torch.empty_like(handed)  # adjoint of the state after each chunk, from later ones
    after[-1] = dlast
    for k in range(chunks - 1, 0, -1):
        torch.addcmul(handed[k], chunk_decay[k], after[k], out=after[k - 1])

    y, du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, u, delta, B, C))
    dA = torch.zeros_like(A)
    for k in range(0, chunks, block):
        part = slice(k, k + block)
        before = states[:-1][part]
        decay, x = _decay_and_input(u[:, part], delta[:, part], A, B[:, part])
        x[0] += decay[0] * before
        h = _carry(decay, x)
        _, g = _decay_and_input(dy[:, part], delta[:, part], A, C[:, part], by_delta=False)
        g[-1] += after[part]
        _carry_back(decay, g)
        y[:, part] = _sum_over_states(h, C[:, part])
        dC[:, part] = _sum_over_channels(h, dy[:, part], groups)
        dB[:, part] = _sum_over_channels(g, delta[:, part] * u[:, part], groups)
        gB = _sum_over_states(g, B[:, part])
        du[:, part] = delta[:, part] * gB
        decay[0] *= before
        decay[1:] *= h[:-1]
        decay *= g  # g_t exp(delta_t A) h_{t-1}, the gradient of delta_t A
        dA += (decay * delta[:, part].unsqueeze(-1)).sum((0, 1, 2))
        ddelta[:, part] = u[:, part] * gB + (decay * A).sum(-1)
    y, du, ddelta, dB, dC = (_from_chunks(x, length) for x in (y, du, ddelta, dB, dC))
    return y, du, ddelta, dA, dB, dC


def _chunking(u: Tensor, n: int, budget: int = 1 << 20) -> tuple[int, int, int]:
    """Tokens per chunk T, number of chunks K, chunks per block.

    `budget` is the elements of the largest temporary: 4 MiB in float32, the fastest on a CPU.
    """
    width = u.shape[0] * u.shape[1] * n
    # sqrt balances the steps inside a block with those between chunks; 16 bounds the states kept.
    tokens = min(u.shape[2], max(16, int(math.sqrt(min(u.shape[2], budget // width)))))
    chunks = (u.shape[2] + tokens - 1) // tokens
    block = budget // (width * tokens)
    return tokens, chunks, min(max(block, 1), chunks)


def _to_chunks(x: Tensor, tokens: int, chunks: int) -> Tensor:
    """(..., l) to (T, K, ...), so that one step of all chunks reads one slab."""
    x = F.pad(x, [0, tokens * chunks - x.shape[-1]])
    return x.unflatten(-1, [chunks, tokens]).movedim(-1, 0).movedim(-1, 1).contiguous()


def _from_chunks(x: Tensor, length: int) -> Tensor:
    """(T, K, ...) to (..., l)."""
    return x.movedim(1, -1).movedim(0, -1).flatten(-2)[..., :length].contiguous()


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(T, K, b, d, n) to (T, K, b, g, d / g, n): channels that share one B and C together."""
    return x.unflatten(3, [groups, x.shape[3] // groups])


def _decay_and_input(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, by_delta: bool = True
) -> tuple[Tensor, Tensor]:
    """exp(delta A), and delta B u or B u, both (T, K, b, d, n).

    u, delta (T, K, b, d); A (d, n); B (T, K, b, g, n).
    """
    decay = (delta.unsqueeze(-1) * A).exp_()
    if by_delta:
        u = u * delta
    x = _by_group(u.unsqueeze(-1), B.shape[3]) * B.unsqueeze(4)
    return decay, x.flatten(3, 4)


def _carry(decay: Tensor, x: Tensor) -> Tensor:
    """h_t = x_t + decay_t h_{t-1} along the first axis, in place of x."""
    for t in range(1, x.shape[0]):
        x[t].addcmul_(decay[t], x[t - 1])
    return x


def _carry_back(decay: Tensor, g: Tensor) -> Tensor:
    """g_t = g_t + decay_{t+1} g_{t+1} along the first axis, in place."""
    for t in range(g.shape[0] - 2, -1, -1):
        g[t].addcmul_(decay[t + 1], g[t + 1])
    return g


def _chunk_decay(delta: Tensor, A: Tensor) -> Tensor:
    """exp(A sum of delta) over each chunk: (K, b, d, n)."""
    return (delta.sum(0).unsqueeze(-1) * A).exp_()


def _states_between_chunks(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, block: int) -> Tensor:
    """The state before each chunk and after the last: (K + 1, b, d, n)."""
    chunks = u.shape[1]
    states = torch.zeros(
        [chunks + 1, u.shape[2], u.shape[3], A.shape[1]], dtype=u.dtype, device=u.device
    )
    for k in range(0, chunks, block):
        end = min(k + block, chunks)
        decay, x = _decay_and_input(u[:, k:end], delta[:, k:end], A, B[:, k:end])
        states[k + 1 : end + 1] = _carry(decay, x)[-1]
    chunk_decay = _chunk_decay(delta, A)
    for k in range(1, chunks):
        states[k + 1].addcmul_(chunk_decay[k], states[k])
    return states


def _sum_over_states(h: Tensor, C: Tensor) -> Tensor:
    """sum_n C h: (T, K, b, d, n) and (T, K, b, g, n) to (T, K, b, d)."""
    return torch.matmul(_by_group(h, C.shape[3]), C.unsqueeze(-1)).squeeze(-1).flatten(3, 4)


def _sum_over_channels(h: Tensor, x: Tensor, groups: int) -> Tensor:
    """sum of h x over a group's channels: (T, K, b, d, n) and (T, K, b, d) to (T, K, b, g, n)."""
    x = _by_group(x.unsqueeze(-1), groups)  # (T, K, b, g, d / g, 1)
    return torch.matmul(x.transpose(-1, -2), _by_group(h, groups)).squeeze(-2)
