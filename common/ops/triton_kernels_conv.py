"""Triton kernels of the causal depthwise convolution with SiLU; `triton_conv` launches them.

A program is one warp. It has a block of channels of one batch item and SPAN tokens, and takes ROWS
tokens at a time, each as one row of channels in registers: it loads all rows before it needs the
first. The few rows around them that the kernel reaches are in the cache already, so that memory is
read once. What the backward pass needs of the forward pass is computed again.

Offsets are int64: they begin with the program's number, which is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import _sigmoid


@triton.jit
def _place(channels, spans, CHANNELS: tl.constexpr):
    """This program's number along batch and tokens, batch item, span, channels, and their mask."""
    blocks = tl.cdiv(channels, CHANNELS)
    program = tl.program_id(0).to(tl.int64)
    own = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    place = program // blocks
    return place, place // spans, place % spans, own, own < channels


@triton.jit
def _load_weight(weight, own, mask, TAPS: tl.constexpr):
    """The taps of dense (d, taps), each as (channels,)."""
    taps = ()
    for k in tl.static_range(TAPS):
        taps = taps + (tl.load(weight + own * TAPS + k, mask=mask, other=0.0).to(tl.float32),)
    return taps


@triton.jit
def _load_rows(x, batch, first, own, mask, length, ROWS: tl.constexpr):
    """Tokens from `first` on, zeros where there is none; x = (pointer, strides of (b, d, l))."""
    rows = ()
    for t in tl.static_range(ROWS):
        token = first + t
        at = x[0] + batch * x[1] + token * x[3] + own * x[2]
        inside = mask & (token >= 0) & (token < length)
        rows = rows + (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
    return rows


@triton.jit
def _store_row(x, batch, token, own, mask, length, row):
    at = x[0] + batch * x[1] + token * x[3] + own * x[2]
    tl.store(at, row.to(x[0].dtype.element_ty), mask=mask & (token < length))


@triton.jit
def _convolve(rows, FIRST: tl.constexpr, taps, bias, TAPS: tl.constexpr):
    """Before the SiLU, from rows[FIRST] on."""
    total = bias
    for k in tl.static_range(TAPS):
        total += taps[k] * rows[FIRST + k]
    return total


@triton.jit(do_not_specialize=["length", "spans"])
def forward(
    weight, bias, x, y, channels, length, spans,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y_t = SiLU(bias + sum over k of weight_k x_{t - (TAPS - 1) + k})."""
    _, batch, span, own, mask = _place(channels, spans, CHANNELS)
    taps = _load_weight(weight, own, mask, TAPS)
    b = tl.load(bias + own, mask=mask, other=0.0).to(tl.float32)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, length), ROWS):
        xs = _load_rows(x, batch, start - (TAPS - 1), own, mask, length, ROWS + TAPS - 1)
        for t in tl.static_range(ROWS):
            before = _convolve(xs, t, taps, b, TAPS)
            _store_row(y, batch, start + t, own, mask, length, before * _sigmoid(before))


@triton.jit(do_not_specialize=["length", "spans"])
def backward(
    weight, bias, x, dy, dx, dweight, dbias, channels, length, spans,
    TAPS: tl.constexpr, CHANNELS: tl.constexpr, SPAN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx, and this program's part of dweight (parts, d, taps) and of dbias (parts, d)."""
    place, batch, span, own, mask = _place(channels, spans, CHANNELS)
    taps = _load_weight(weight, own, mask, TAPS)
    b = tl.load(bias + own, mask=mask, other=0.0).to(tl.float32)
    sums = ()
    for _ in tl.static_range(TAPS + 1):
        sums = sums + (tl.zeros((CHANNELS,), tl.float32),)
    for start in range(span * SPAN, tl.minimum((span + 1) * SPAN, length), ROWS):
        xs = _load_rows(x, batch, start - (TAPS - 1), own, mask, length, ROWS + 2 * (TAPS - 1))
        dys = _load_rows(dy, batch, start, own, mask, length, ROWS + TAPS - 1)
        grads = ()  # before the SiLU; of later tokens too, which dx needs
        for t in tl.static_range(ROWS + TAPS - 1):
            before = _convolve(xs, t, taps, b, TAPS)
            grad = dys[t] * _sigmoid(before) * (1 + before * _sigmoid(-before))
            grads = grads + (tl.where(start + t < length, grad, 0.0),)
        for t in tl.static_range(ROWS):
            total = taps[TAPS - 1] * grads[t]
            for k in tl.static_range(1, TAPS):
                total += taps[TAPS - 1 - k] * grads[t + k]
            _store_row(dx, batch, start + t, own, mask, length, total)
            added = ()
            for k in tl.static_range(TAPS):
                added = added + (sums[k] + grads[t] * xs[t + k],)
            sums = added + (sums[TAPS] + grads[t],)
    at = place * channels + own
    for k in tl.static_range(TAPS):
        tl.store(dweight + at * TAPS + k, sums[k], mask=mask)
    tl.store(dbias + at, sums[TAPS], mask=mask)
