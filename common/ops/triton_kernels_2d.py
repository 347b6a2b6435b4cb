"""Triton kernels of the scan in four orders; `triton_scan_2d` launches them. Needs Triton.

A program has a block of channels of one batch item in one order, and walks the whole map in tiles,
SEGMENTS x states x CHANNELS, with a segment of TOKENS consecutive tokens in each element's
registers. A segment maps the state before it to the one after it by a product and a sum, which are
found at once for all segments and then composed; decays are multiplied and never divided. So what
the multiprocessors share is a tile's segments, each number is read once, and a tile's state is all
that is kept for the backward pass.

A segment lies in one line of the map, a row or a column, and lines are cut into whole segments:
where one is left over, its step sizes are 0, which leave a state as it is.

Offsets are int64 wherever they are multiplied by a stride.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import LN2, LOG2E, _before_segments, _sigmoid, _softplus


@triton.jit
def _place(batches, d, CHANNELS: tl.constexpr):
    """This program's order, batch item, block of channels, channels as (1, 1, C), their mask."""
    program = tl.program_id(0).to(tl.int64)
    order = program % 4
    batch = program // 4 % batches
    block = program // 4 // batches
    channels = block * CHANNELS + tl.arange(0, CHANNELS)[None, None, :]
    return order, batch, block, channels, channels < d


@triton.jit
def _lines(order, batch, height, width, TOKENS: tl.constexpr):
    """An order's segments, those of a line, a line's tokens, and where its first state is saved."""
    of_a_row, of_a_column = tl.cdiv(width, TOKENS), tl.cdiv(height, TOKENS)
    of_rows, of_columns = height * of_a_row, width * of_a_column
    slot = (2 * batch + order // 2) * (of_rows + of_columns)
    rows = order % 2 == 0
    return (
        tl.where(rows, of_rows, of_columns),
        tl.where(rows, of_a_row, of_a_column),
        tl.where(rows, width, height),
        tl.where(rows, slot, slot + of_rows),
    )


@triton.jit
def _path(x, batch, order, height, width):
    """(pointer to an order's first site, strides of channel, line, token).

    x = (pointer, strides of (b, 4, c, h, w)).
    """
    rows = order % 2 == 0
    forward = order < 2
    sign = tl.where(forward, 1, -1).to(tl.int64)
    last = (height - 1).to(tl.int64) * x[4] + (width - 1).to(tl.int64) * x[5]
    start = x[0] + batch * x[1] + order * x[2] + tl.where(forward, 0, last)
    return start, x[3], sign * tl.where(rows, x[4], x[5]), sign * tl.where(rows, x[5], x[4])


@triton.jit
def _at(path, segment, of_a_line, first, channels):
    """Pointers to the first tokens of segments."""
    line = (segment // of_a_line).to(tl.int64)
    return path[0] + line * path[2] + first.to(tl.int64) * path[3] + channels * path[1]


@triton.jit
def _load_vector(x, at, mask):
    """A value per channel, 0 where x is absent."""
    if x is None:
        return tl.zeros(mask.shape, tl.float32)
    else:
        return tl.load(x + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["batches", "height", "width"])
def forward(
    u, delta, A, B, C, D, bias, y, saved,
    batches, d, n, height, width,
    N: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """An order's y, and the states before its segments."""
    order, batch, block, channels, channel_mask = _place(batches, d, CHANNELS)
    segments, of_a_line, tokens, slot = _lines(order, batch, height, width, TOKENS)
    i = tl.arange(0, N)[None, :, None]
    states = channels * n + i
    state_mask = channel_mask & (i < n)
    rates = tl.load(A + order * d * n + states, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    skip = _load_vector(D, order * d + channels, channel_mask)
    b = _load_vector(bias, order * d + channels, channel_mask)
    u_path = _path(u, batch, order, height, width)
    delta_path = _path(delta, batch, order, height, width)
    B_path = _path(B, batch, order, height, width)
    C_path = _path(C, batch, order, height, width)
    y_path = _path(y, batch, order, height, width)
    h = tl.zeros_like(rates)
    for start in range(0, segments, SEGMENTS):
        segment = start + tl.arange(0, SEGMENTS)[:, None, None]
        first = segment % of_a_line * TOKENS
        u_at = _at(u_path, segment, of_a_line, first, channels)
        delta_at = _at(delta_path, segment, of_a_line, first, channels)
        B_at = _at(B_path, segment, of_a_line, first, i)
        C_at = _at(C_path, segment, of_a_line, first, i)
        y_at = _at(y_path, segment, of_a_line, first, channels)
        us, decays, xs = (), (), ()
        added, sum_of_steps = 0.0, 0.0
        for t in tl.static_range(TOKENS):
            inside = (segment < segments) & (first + t < tokens)
            mask, map_mask = inside & channel_mask, inside & (i < n)
            u_t = tl.load(u_at + t * u_path[3], mask=mask, other=0.0).to(tl.float32)
            step = tl.load(delta_at + t * delta_path[3], mask=mask, other=0.0).to(tl.float32) + b
            B_t = tl.load(B_at + t * B_path[3], mask=map_mask, other=0.0).to(tl.float32)
            if SOFTPLUS:
                step = _softplus(step)
            step = tl.where(mask, step, 0.0)
            decay = tl.exp2(step * rates)
            x = step * u_t * B_t
            added = decay * added + x
            sum_of_steps += step
            us, decays, xs = us + (u_t,), decays + (decay,), xs + (x,)
        h_t, h = _before_segments(tl.exp2(sum_of_steps * rates), added, h)
        if saved is not None:
            save_at = saved + (slot + segment) * d * n + states
            tl.store(save_at, h_t, mask=state_mask & (segment < segments))
        for t in tl.static_range(TOKENS):
            inside = (segment < segments) & (first + t < tokens)
            C_t = tl.load(C_at + t * C_path[3], mask=inside & (i < n), other=0.0).to(tl.float32)
            h_t = decays[t] * h_t + xs[t]
            y_t = tl.sum(h_t * C_t, 1, keep_dims=True) + skip * us[t]
            tl.store(y_at + t * y_path[3], y_t, mask=inside & channel_mask)


@triton.jit(do_not_specialize=["batches", "height", "width"])
def backward(
    u, delta, A, B, C, D, bias, saved, dy, du, ddelta, dA, dmaps, dD, dbias,
    batches, d, n, height, width,
    N: tl.constexpr, SEGMENTS: tl.constexpr, CHANNELS: tl.constexpr, TOKENS: tl.constexpr,
    SOFTPLUS: tl.constexpr,
):  # fmt: skip
    """An order's gradients: dA, dD and dbias this batch item's part, B's and C's this block's.

    A tile has its segments from the last to the first, as the adjoint meets them.
    """
    order, batch, block, channels, channel_mask = _place(batches, d, CHANNELS)
    segments, of_a_line, tokens, slot = _lines(order, batch, height, width, TOKENS)
    i = tl.arange(0, N)[None, :, None]
    states = channels * n + i
    state_mask = channel_mask & (i < n)
    rates = tl.load(A + order * d * n + states, mask=state_mask, other=0.0).to(tl.float32) * LOG2E
    skip = _load_vector(D, order * d + channels, channel_mask)
    b = _load_vector(bias, order * d + channels, channel_mask)
    u_path = _path(u, batch, order, height, width)
    delta_path = _path(delta, batch, order, height, width)
    B_path = _path(B, batch, order, height, width)
    C_path = _path(C, batch, order, height, width)
    dy_path = _path(dy, batch, order, height, width)
    du_path = _path(du, batch, order, height, width)
    ddelta_path = _path(ddelta, batch, order, height, width)
    dmaps_path = _path(dmaps, block * batches + batch, order, height, width)
    k = tl.arange(0, 2 * TOKENS)[None, None, :]  # a segment's tokens, for B and for C
    g = tl.zeros_like(rates)  # of the state before the segments that are done
    sum_A = tl.zeros((SEGMENTS, N, CHANNELS), tl.float32)
    sum_D = tl.zeros((SEGMENTS, 1, CHANNELS), tl.float32)
    sum_bias = tl.zeros((SEGMENTS, 1, CHANNELS), tl.float32)
    for done in range(0, segments, SEGMENTS):
        segment = segments - 1 - done - tl.arange(0, SEGMENTS)[:, None, None]
        first = segment % of_a_line * TOKENS
        u_at = _at(u_path, segment, of_a_line, first, channels)
        delta_at = _at(delta_path, segment, of_a_line, first, channels)
        B_at = _at(B_path, segment, of_a_line, first, i)
        C_at = _at(C_path, segment, of_a_line, first, i)
        dy_at = _at(dy_path, segment, of_a_line, first, channels)
        du_at = _at(du_path, segment, of_a_line, first, channels)
        ddelta_at = _at(ddelta_path, segment, of_a_line, first, channels)
        save_at = saved + (slot + segment) * d * n + states
        h = tl.load(save_at, mask=state_mask & (segment >= 0), other=0.0)
        us, raws, steps, decays, hs, grads, Bs, Cs = (), (), (), (), (h,), (), (), ()
        sum_of_steps = 0.0
        for t in tl.static_range(TOKENS):
            inside = (segment >= 0) & (first + t < tokens)
            mask, map_mask = inside & channel_mask, inside & (i < n)
            u_t = tl.load(u_at + t * u_path[3], mask=mask, other=0.0).to(tl.float32)
            raw = tl.load(delta_at + t * delta_path[3], mask=mask, other=0.0).to(tl.float32) + b
            grad = tl.load(dy_at + t * dy_path[3], mask=mask, other=0.0).to(tl.float32)
            B_t = tl.load(B_at + t * B_path[3], mask=map_mask, other=0.0).to(tl.float32)
            C_t = tl.load(C_at + t * C_path[3], mask=map_mask, other=0.0).to(tl.float32)
            step = raw
            if SOFTPLUS:
                step = _softplus(raw)
            step = tl.where(mask, step, 0.0)
            decay = tl.exp2(step * rates)
            h = decay * h + step * u_t * B_t
            sum_of_steps += step
            us, raws, steps, decays = us + (u_t,), raws + (raw,), steps + (step,), decays + (decay,)
            hs, grads, Bs, Cs = hs + (h,), grads + (grad,), Bs + (B_t,), Cs + (C_t,)
        added = 0.0
        for t in tl.static_range(TOKENS - 1, -1, -1):
            added = decays[t] * (added + grads[t] * Cs[t])
        g_t, g = _before_segments(tl.exp2(sum_of_steps * rates), added, g)
        to_maps = tl.zeros((SEGMENTS, N, 2 * TOKENS), tl.float32)
        for t in tl.static_range(TOKENS - 1, -1, -1):
            mask = (segment >= 0) & (first + t < tokens) & channel_mask
            g_t += grads[t] * Cs[t]
            to_B = tl.sum(g_t * steps[t] * us[t], 2, keep_dims=True)
            to_C = tl.sum(hs[t + 1] * grads[t], 2, keep_dims=True)
            to_maps = tl.where(k == t, to_B, tl.where(k == t + TOKENS, to_C, to_maps))
            gB = tl.sum(g_t * Bs[t], 1, keep_dims=True)
            g_t = decays[t] * g_t
            of_decay = g_t * hs[t]  # the gradient of step A
            sum_A += of_decay * steps[t]
            dstep = us[t] * gB + tl.sum(of_decay * rates, 1, keep_dims=True) * LN2
            if SOFTPLUS:
                dstep = dstep * _sigmoid(raws[t])
            dstep = tl.where(mask, dstep, 0.0)
            tl.store(du_at + t * du_path[3], steps[t] * gB + skip * grads[t], mask=mask)
            sum_D += grads[t] * us[t]
            sum_bias += dstep
            dstep = dstep.to(ddelta[0].dtype.element_ty)
            tl.store(ddelta_at + t * ddelta_path[3], dstep, mask=mask)
        inside = (segment >= 0) & (first + k % TOKENS < tokens)
        to = _at(dmaps_path, segment, of_a_line, first + k % TOKENS, k // TOKENS * n + i)
        tl.store(to, to_maps, mask=inside & (i < n))
    part = (batch * 4 + order) * d
    tl.store(dA + part * n + states, tl.sum(sum_A, 0, keep_dims=True), mask=state_mask)
    tl.store(dD + part + channels, tl.sum(sum_D, 0, keep_dims=True), mask=channel_mask)
    tl.store(dbias + part + channels, tl.sum(sum_bias, 0, keep_dims=True), mask=channel_mask)
