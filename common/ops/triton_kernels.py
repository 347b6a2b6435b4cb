"""Triton kernels of the selective scan; `triton_scan` launches them. Importing this needs Triton.

A program has a block of channels of one batch item and one chunk of tokens, and walks it token by
token with the states in registers: decays are multiplied and never divided. It is one warp, so
that nothing waits for another, and chunks give the parallelism. Its states, (N, channels), lie 4 x
8 over the lanes: both sums, over states for y and over channels for the gradients of B and C, are
half in a thread and take two or three exchanges between lanes. (Triton derives this from how A is
laid out; with a thread per channel, the sums over channels would take most of the backward pass.)

Tokens are loaded and stored in tiles, tokens x channels, whichever is contiguous along the lanes,
so that both layouts are read in full sectors, and are split into rows in registers. What is done
per channel, a softplus say, is done on the tile, where no two lanes have the same element.

Offsets are int64: they begin with the program's number, which is.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


# tl.exp keeps denormal numbers, in twice the instructions; tl.exp2 does not.
@triton.jit
def _softplus(x):
    e = tl.exp2(-tl.abs(x) * LOG2E)
    # log(1 + e) for e in [0, 1], to float32's precision: e times a minimax polynomial.
    p = 0.005364816635847092 * e - 0.030065763741731644
    p = p * e + 0.0792044922709465
    p = p * e - 0.13753798604011536
    p = p * e + 0.1915365308523178
    p = p * e - 0.24857163429260254
    p = p * e + 0.3332132399082184
    p = p * e - 0.49999648332595825
    return tl.maximum(x, 0.0) + (p * e + 1) * e


@triton.jit
def _sigmoid(x):
    e = tl.exp2(-tl.abs(x) * LOG2E)
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def _place(groups, group_channels, chunks, CHANNELS: tl.constexpr):
    """This program's batch item, chunk, group and block in its group, channels, their mask."""
    blocks = tl.cdiv(group_channels, CHANNELS)
    program = tl.program_id(0).to(tl.int64)
    block = program % blocks
    group = program // blocks % groups
    chunk = program // blocks // groups % chunks
    batch = program // blocks // groups // chunks
    in_group = block * CHANNELS + tl.arange(0, CHANNELS)
    channels = group * group_channels + in_group
    return batch, chunk, group, block, channels, in_group < group_channels


@triton.jit
def _states(channels, mask, n, N: tl.constexpr):
    """Offsets into a dense (d, n), and their mask, as (N, channels)."""
    i = tl.arange(0, N)[:, None]
    return channels[None, :] * n + i, mask[None, :] & (i < n)


@triton.jit
def _rows(tile):
    """The rows of (tokens, channels), each as (1, channels)."""
    TOKENS: tl.constexpr = tile.shape[0]
    CHANNELS: tl.constexpr = tile.shape[1]
    if TOKENS == 1:
        return (tile,)
    else:
        halves = tl.reshape(tile, (2, TOKENS // 2, CHANNELS))
        first, second = tl.split(tl.permute(halves, (1, 2, 0)))
        return _rows(first) + _rows(second)


@triton.jit
def _tile(rows, FIRST: tl.constexpr, TOKENS: tl.constexpr):
    """(TOKENS, channels) of (1, channels), from rows[FIRST] on."""
    if TOKENS == 1:
        return rows[FIRST]
    else:
        first = _tile(rows, FIRST, TOKENS // 2)
        second = _tile(rows, FIRST + TOKENS // 2, TOKENS // 2)
        halves = tl.permute(tl.join(first, second), (2, 0, 1))
        return tl.reshape(halves, (TOKENS, first.shape[1]))


@triton.jit
def _pointers(x, batch, tokens, channels):
    """Of a tile (tokens, channels) of x = (pointer, strides of (b, d, l))."""
    return x[0] + batch * x[1] + tokens[:, None] * x[3] + channels[None, :] * x[2]


@triton.jit
def _load_tile(x, batch, tokens, channels, mask):
    at = _pointers(x, batch, tokens, channels)
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_tile(x, batch, tokens, channels, mask, tile):
    at = _pointers(x, batch, tokens, channels)
    tl.store(at, tile.to(x[0].dtype.element_ty), mask=mask)


@triton.jit
def _load_vector(x, channels, mask):
    """A value per channel as (1, channels), 0 where x is absent."""
    if x is None:
        return tl.zeros((1, channels.shape[0]), tl.float32)
    else:
        return tl.load(x + channels, mask=mask, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_map(x, batch, group, token, length, n, N: tl.constexpr):
    """A token's B or C as (N, 1); x = (pointer, strides of (b, g, n, l))."""
    i = tl.arange(0, N)[:, None]
    at = x[0] + batch * x[1] + group * x[2] + token * x[4] + i.to(tl.int64) * x[3]
    return tl.load(at, mask=(i < n) & (token < length), other=0.0).to(tl.float32)


@triton.jit
def _load_steps(delta, bias, batch, tokens, channels, mask, SOFTPLUS: tl.constexpr):
    """Step sizes before and after the softplus; 0 after it where there is no token."""
    raw = _load_tile(delta, batch, tokens, channels, mask) + bias
    if SOFTPLUS:
        return raw, tl.where(mask, _softplus(raw), 0.0)
    else:
        return raw, tl.where(mask, raw, 0.0)


@triton.jit
def _advance(h, decay_rates, steps, inputs, B, batch, group, start, length, n, N: tl.constexpr):
    """The states before and after each token of a tile."""
    step, x = _rows(steps), _rows(steps * inputs)
    hs = (h,)
    for t in tl.static_range(steps.shape[0]):
        B_t = _load_map(B, batch, group, start + t, length, n, N)
        h = tl.exp2(step[t] * decay_rates) * h + x[t] * B_t
        hs = hs + (h,)
    return hs


@triton.jit(do_not_specialize=["length", "chunks", "tiles"])
def chunk_states(
    u, delta, A, B, bias, states, totals, groups, group_channels, length, n, chunks, tiles,
    N: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """What a chunk adds to the state, and its step sizes' sum, into the slot of the next one."""
    batch, chunk, group, block, channels, channel_mask = _place(
        groups, group_channels, chunks, CHANNELS
    )
    if chunk == chunks - 1:
        return
    at, state_mask = _states(channels, channel_mask, n, N)
    rates = tl.load(A + at, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    b = _load_vector(bias, channels, channel_mask)
    h = tl.zeros_like(rates)
    total = tl.zeros((CHANNELS,), tl.float32)
    for tile in range(tiles):
        start = (chunk * tiles + tile) * TOKENS
        tokens = start + tl.arange(0, TOKENS)
        mask = (tokens < length)[:, None] & channel_mask[None, :]
        raw, steps = _load_steps(delta, b, batch, tokens, channels, mask, SOFTPLUS)
        inputs = _load_tile(u, batch, tokens, channels, mask)
        h = _advance(h, rates, steps, inputs, B, batch, group, start, length, n, N)[TOKENS]
        total += tl.sum(steps, 0)
    slot = (batch * chunks + chunk + 1) * groups * group_channels
    tl.store(states + slot * n + at, h, mask=state_mask)
    tl.store(totals + slot + channels, total, mask=channel_mask)


@triton.jit
def _compose(product, added, but_product, but_added, p, a, q, b):
    """Of two runs of segments: the whole map, and that of all but the last segment."""
    return product * p, p * added + a, product * q, q * added + b


@triton.jit
def _before_segments(product, added, h):
    """The states before each segment, and after all of them, from the one before the tile.

    A segment takes h to product h + added. Segments lie along the first of three axes.
    """
    SEGMENTS: tl.constexpr = product.shape[0]
    one, nothing = tl.full(product.shape, 1.0, tl.float32), tl.zeros_like(product)
    product, added, but_product, but_added = tl.associative_scan(
        (product, added, one, nothing), 0, _compose
    )
    is_last = tl.arange(0, SEGMENTS)[:, None, None] == SEGMENTS - 1
    after = tl.sum(tl.where(is_last, product * h + added, 0.0), 0, keep_dims=True)
    return but_product * h + but_added, after


@triton.jit(do_not_specialize=["chunks", "first"])
def carry(
    x, totals, A, channels, n, chunks, first, step,
    SEGMENTS: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x[k] += exp(A totals[k]) x[k - step] from slot first + step on; x (b, chunks, d, n).

    SEGMENTS of CHUNKS at a time: one by one, a thousand chunks take as long as what is in them.
    """
    blocks = tl.cdiv(channels * n, BLOCK)
    batch = tl.program_id(0).to(tl.int64) // blocks
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, None, :]
    mask = at < channels * n
    rates = tl.load(A + at, mask=mask, other=0.0).to(tl.float32) * LOG2E
    here = batch * chunks + first  # int64, as all that is computed from it
    h = tl.load(x + here * channels * n + at, mask=mask, other=0.0)
    for start in range(1, chunks, SEGMENTS * CHUNKS):
        chunk = start + tl.arange(0, SEGMENTS)[:, None, None] * CHUNKS
        slot = here + chunk * step
        x_at = x + slot * channels * n + at
        total_at = totals + slot * channels + at // n
        decays, addeds = (), ()
        product, sum_of_added = 1.0, 0.0
        for k in tl.static_range(CHUNKS):
            inside = mask & (chunk + k < chunks)
            total = tl.load(total_at + k * step * channels, mask=inside, other=0.0)
            added = tl.load(x_at + k * step * channels * n, mask=inside, other=0.0)
            decay = tl.exp2(total * rates)
            product = product * decay
            sum_of_added = decay * sum_of_added + added
            decays, addeds = decays + (decay,), addeds + (added,)
        h_k, h = _before_segments(product, sum_of_added, h)
        for k in tl.static_range(CHUNKS):
            h_k = decays[k] * h_k + addeds[k]
            tl.store(x_at + k * step * channels * n, h_k, mask=mask & (chunk + k < chunks))


@triton.jit(do_not_specialize=["length", "chunks", "tiles"])
def forward(
    u, delta, A, B, C, D, z, bias, states, y, last, saved,
    groups, group_channels, length, n, chunks, tiles,
    N: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, SAVED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """y of a chunk from the state before it, the last state, and the states to save."""
    batch, chunk, group, block, channels, channel_mask = _place(
        groups, group_channels, chunks, CHANNELS
    )
    at, state_mask = _states(channels, channel_mask, n, N)
    rates = tl.load(A + at, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    b = _load_vector(bias, channels, channel_mask)
    skip = _load_vector(D, channels, channel_mask)
    d = groups * group_channels
    h = tl.zeros_like(rates)
    if states is not None:
        h = tl.load(states + (batch * chunks + chunk) * d * n + at, mask=state_mask, other=0.0)
    saves = tl.cdiv(length, SAVED)
    for tile in range(chunk * tiles, tl.minimum((chunk + 1) * tiles, tl.cdiv(length, TOKENS))):
        start = tile * TOKENS
        tokens = start + tl.arange(0, TOKENS)
        mask = (tokens < length)[:, None] & channel_mask[None, :]
        if saved is not None:
            slot = batch * saves + start // SAVED
            whole = start % SAVED == 0
            tl.store(saved + slot * d * n + at, h, mask=state_mask & whole)
        raw, steps = _load_steps(delta, b, batch, tokens, channels, mask, SOFTPLUS)
        inputs = _load_tile(u, batch, tokens, channels, mask)
        step, x = _rows(steps), _rows(steps * inputs)
        ys = ()
        for t in tl.static_range(TOKENS):
            B_t = _load_map(B, batch, group, start + t, length, n, N)
            C_t = _load_map(C, batch, group, start + t, length, n, N)
            h = tl.exp2(step[t] * rates) * h + x[t] * B_t
            ys = ys + (tl.sum(h * C_t, 0, keep_dims=True),)
        out = _tile(ys, 0, TOKENS) + skip * inputs
        if z is not None:
            gate = _load_tile(z, batch, tokens, channels, mask)
            out = out * gate * _sigmoid(gate)
        _store_tile(y, batch, tokens, channels, mask, out)
    if chunk == chunks - 1:
        tl.store(last + batch * d * n + at, h, mask=state_mask)


@triton.jit
def _load_ungated(dy, z, batch, tokens, channels, mask):
    """The gradient of y before its gate."""
    grad = _load_tile(dy, batch, tokens, channels, mask)
    if z is not None:
        gate = _load_tile(z, batch, tokens, channels, mask)
        grad = grad * gate * _sigmoid(gate)
    return grad


@triton.jit(do_not_specialize=["length", "chunks", "tiles"])
def chunk_adjoints(
    delta, A, C, z, bias, dy, adjoints, totals,
    groups, group_channels, length, n, chunks, tiles,
    N: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """What a chunk's y add to the adjoint of the state before it, into the slot before its own."""
    batch, chunk, group, block, channels, channel_mask = _place(
        groups, group_channels, chunks, CHANNELS
    )
    if chunk == 0:
        return
    at, state_mask = _states(channels, channel_mask, n, N)
    rates = tl.load(A + at, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    b = _load_vector(bias, channels, channel_mask)
    g = tl.zeros_like(rates)
    total = tl.zeros((CHANNELS,), tl.float32)
    for tile in range(tiles):
        start = ((chunk + 1) * tiles - 1 - tile) * TOKENS
        tokens = start + tl.arange(0, TOKENS)
        mask = (tokens < length)[:, None] & channel_mask[None, :]
        raw, steps = _load_steps(delta, b, batch, tokens, channels, mask, SOFTPLUS)
        total += tl.sum(steps, 0)
        step = _rows(steps)
        grad = _rows(_load_ungated(dy, z, batch, tokens, channels, mask))
        for t in tl.static_range(TOKENS - 1, -1, -1):
            C_t = _load_map(C, batch, group, start + t, length, n, N)
            g = tl.exp2(step[t] * rates) * (g + grad[t] * C_t)
    slot = (batch * chunks + chunk - 1) * groups * group_channels
    tl.store(adjoints + slot * n + at, g, mask=state_mask)
    tl.store(totals + slot + channels, total, mask=channel_mask)


@triton.jit(do_not_specialize=["length", "chunks", "tiles"])
def backward(
    u, delta, A, B, C, D, z, bias, saved, dy, adjoints, du, ddelta, dz, dA, dB, dC, dD, dbias,
    groups, group_channels, length, n, chunks, tiles,
    N: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr, SAVED: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """A chunk's gradients, from the adjoint of the state after it.

    A tile's states are computed again from the last saved ones before it. dA, dD, dbias are this
    chunk's part, dB and dC this block of channels' part.
    """
    batch, chunk, group, block, channels, channel_mask = _place(
        groups, group_channels, chunks, CHANNELS
    )
    at, state_mask = _states(channels, channel_mask, n, N)
    rates = tl.load(A + at, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    b = _load_vector(bias, channels, channel_mask)
    skip = _load_vector(D, channels, channel_mask)
    d = groups * group_channels
    slot = batch * chunks + chunk
    g = tl.zeros_like(rates)  # of the state after the token
    if adjoints is not None:
        g = tl.load(adjoints + slot * d * n + at, mask=state_mask, other=0.0)
    sum_A = tl.zeros_like(rates)
    sum_D = tl.zeros((CHANNELS,), tl.float32)
    sum_bias = tl.zeros((CHANNELS,), tl.float32)
    saves = tl.cdiv(length, SAVED)
    # dB and dC are (b, blocks of a group, g, l, n).
    blocks = tl.cdiv(group_channels, CHANNELS)
    map_at = ((batch * blocks + block) * groups + group) * length * n
    end = tl.minimum((chunk + 1) * tiles, tl.cdiv(length, TOKENS))
    for back in range(end - chunk * tiles):
        tile = end - 1 - back
        save = tile * TOKENS // SAVED
        h = tl.load(saved + (batch * saves + save) * d * n + at, mask=state_mask, other=0.0)
        if SAVED > TOKENS:
            for before in range(save * (SAVED // TOKENS), tile):
                start = before * TOKENS
                tokens = start + tl.arange(0, TOKENS)
                mask = (tokens < length)[:, None] & channel_mask[None, :]
                raw, steps = _load_steps(delta, b, batch, tokens, channels, mask, SOFTPLUS)
                inputs = _load_tile(u, batch, tokens, channels, mask)
                h = _advance(h, rates, steps, inputs, B, batch, group, start, length, n, N)[TOKENS]
        start = tile * TOKENS
        tokens = start + tl.arange(0, TOKENS)
        mask = (tokens < length)[:, None] & channel_mask[None, :]
        raw, steps = _load_steps(delta, b, batch, tokens, channels, mask, SOFTPLUS)
        inputs = _load_tile(u, batch, tokens, channels, mask)
        hs = _advance(h, rates, steps, inputs, B, batch, group, start, length, n, N)
        ungated = _load_ungated(dy, z, batch, tokens, channels, mask)
        step, x, grad = _rows(steps), _rows(steps * inputs), _rows(ungated)
        ys, gBs, decays, dBs, dCs = (), (), (), (), ()
        for t in tl.static_range(TOKENS - 1, -1, -1):
            B_t = _load_map(B, batch, group, start + t, length, n, N)
            C_t = _load_map(C, batch, group, start + t, length, n, N)
            g += grad[t] * C_t
            dCs = (tl.sum(hs[t + 1] * grad[t], 1)[None, :],) + dCs
            dBs = (tl.sum(g * x[t], 1)[None, :],) + dBs
            gBs = (tl.sum(g * B_t, 0, keep_dims=True),) + gBs
            if z is not None:
                ys = (tl.sum(hs[t + 1] * C_t, 0, keep_dims=True),) + ys
            g = tl.exp2(step[t] * rates) * g
            of_decay = g * hs[t]  # the gradient of step A
            decays = (tl.sum(of_decay * rates, 0, keep_dims=True),) + decays
            sum_A += of_decay * step[t]
        to_map = map_at + tokens[:, None] * n + tl.arange(0, N)[None, :]
        map_mask = (tokens < length)[:, None] & (tl.arange(0, N) < n)[None, :]
        tl.store(dB + to_map, _tile(dBs, 0, TOKENS), mask=map_mask)
        tl.store(dC + to_map, _tile(dCs, 0, TOKENS), mask=map_mask)
        gB = _tile(gBs, 0, TOKENS)
        _store_tile(du, batch, tokens, channels, mask, steps * gB + skip * ungated)
        dstep = inputs * gB + _tile(decays, 0, TOKENS) * LN2
        if SOFTPLUS:
            dstep = dstep * _sigmoid(raw)
        dstep = tl.where(mask, dstep, 0.0)
        _store_tile(ddelta, batch, tokens, channels, mask, dstep)
        sum_bias += tl.sum(dstep, 0)
        sum_D += tl.sum(ungated * inputs, 0)
        if z is not None:
            gate = _load_tile(z, batch, tokens, channels, mask)
            s = _sigmoid(gate)
            grad_y = _load_tile(dy, batch, tokens, channels, mask)
            out = _tile(ys, 0, TOKENS) + skip * inputs
            out = grad_y * out * s * (1 + gate * _sigmoid(-gate))
            _store_tile(dz, batch, tokens, channels, mask, out)
    tl.store(dA + slot * d * n + at, sum_A, mask=state_mask)
    tl.store(dD + slot * d + channels, sum_D, mask=channel_mask)
    tl.store(dbias + slot * d + channels, sum_bias, mask=channel_mask)
