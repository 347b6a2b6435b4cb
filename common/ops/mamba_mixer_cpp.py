"""`mamba_mixer` on the CPU: torch's matrix products around the C++ convolution and scan.

Tokens are processed in chunks, forward from the first to the last and backward from the last to the
first, so that only x, the output and one state per TILE tokens ever leave the cache. The backward
pass computes a chunk's intermediates again: that takes less time than to write them to fresh memory
and to read them back.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpp
from .cpp import TILE, _arguments, _expect_writes, _run, _states_between, _View, _view
from .forward_mode import refuse_tangents

# Elements of a chunk's u, that is tokens times channels: a few such tensors fit the cache together.
CHUNK = 1 << 18


def mamba_mixer_cpp(x: Tensor, *weights: Tensor) -> Tensor:
    """Arguments, shapes and meaning as in `mamba_mixer`; 16-bit floats are converted here.

    Raises:
        ValueError: a tensor is not on the CPU, or x is float64.
        RuntimeError: the library is missing and cannot be built.
        NotImplementedError: a tensor has a forward-mode derivative.
    """
    for tensor in (x, *weights):
        if tensor.device.type != "cpu":
            raise ValueError(f"x or a weight is on {tensor.device}; allowed for 'cpp' is the CPU.")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"x has dtype {x.dtype}; allowed for backend 'cpp' are float32, float16, bfloat16."
        )
    refuse_tangents("cpp", x=x, **_Weights(*weights)._asdict())
    single = [tensor.float() for tensor in (x, *weights)]
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in single)
    return _mamba_mixer_cpp(*single, needs_grad)[0].to(x.dtype)


@torch.library.custom_op("monai_mamba::mamba_mixer_cpp", mutates_args=(), device_types="cpu")
def _mamba_mixer_cpp(
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs of the states between (or nothing)."""
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    out, saved = _outputs(x, A, out_proj, save_states)
    _expect_writes(out)
    state = x.new_empty((x.shape[0], *A.shape))
    with torch.autocast("cpu", enabled=False):
        chunks, buffers = _divide(x, weights)
        for chunk in chunks:
            part = _Chunk(x, weights, chunk._replace(after=0), buffers)
            y = part.buffer("y", A.shape[0])
            part.scan.y = _view(y.mT, "bcl")
            part.scan.last = _view(state[chunk.items], "bcn")
            if chunk.start > 0:
                part.scan.first = part.scan.last
            if save_states:
                part.scan.saved = _View(data=saved[chunk.items, chunk.start // TILE :].data_ptr())
            _run("selective_scan_forward", part.scan)
            _linear(y, out_proj, out[chunk.items, chunk.start : chunk.stop])
    return out, saved


@_mamba_mixer_cpp.register_fake
def _(x, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, save_states):
    return _outputs(x, A, out_proj, save_states)


@torch.library.custom_op(
    "monai_mamba::mamba_mixer_cpp_backward", mutates_args=(), device_types="cpu"
)
def _mamba_mixer_cpp_backward(
    dout: Tensor,
    saved: Tensor,
    x: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    out_proj: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    dx, sums = x.new_empty(x.shape), _Weights(*(w.new_zeros(w.shape) for w in weights))
    _expect_writes(dx)
    # What the C++ functions write per chunk, to be added to the sums.
    of_chunk = _Weights(*(w.new_empty(w.shape) for w in weights))
    added = ("conv_weight", "conv_bias", "dt_bias", "A", "D")
    (d, n), rank = A.shape, dt_proj.shape[1]
    adjoint = x.new_empty((x.shape[0], d, n))
    later_du = x.new_empty((0, d))
    with torch.autocast("cpu", enabled=False):
        chunks, buffers = _divide(x, weights)
        for chunk in reversed(chunks):
            part = _Chunk(x, weights, chunk, buffers)
            tokens, after = chunk.stop - chunk.start, chunk.after
            y, dy, ddelta = (part.buffer(name, d) for name in ("y", "dy", "ddelta"))
            dB, dC = (part.buffer(name, n) for name in ("dB", "dC"))
            dmaps, dxz = part.buffer("dmaps", rank + 2 * n), part.buffer("dxz", 2 * d)
            du_and_later = part.buffer("du", d, after)
            du = du_and_later[:, :tokens]
            du_and_later[:, tokens:] = later_du[:after]

            dout_rows = _rows(dout[chunk.items, chunk.start : chunk.stop].contiguous())
            torch.mm(dout_rows, out_proj, out=_rows(dy))
            scan = part.scan
            scan.saved = _View(data=saved[chunk.items, chunk.start // TILE :].data_ptr())
            scan.dy, scan.y = _view(dy.mT, "bcl"), _view(y.mT, "bcl")
            scan.dfirst = _view(adjoint[chunk.items], "bcn")
            if chunk.stop < x.shape[1]:
                scan.dlast = scan.dfirst
            scan.du, scan.ddelta = _view(du.mT, "bcl"), _view(ddelta.mT, "bcl")
            scan.dz, scan.dA = _view(dxz[..., d:].mT, "bcl"), _view(of_chunk.A, "cn")
            scan.dD, scan.dbias = _view(of_chunk.D, "c"), _view(of_chunk.dt_bias, "c")
            scan.dB, scan.dC = _view(dB.mT, "bnl"), _view(dC.mT, "bnl")
            _run("selective_scan_backward", scan)
            sums.out_proj.addmm_(dout_rows.t(), _rows(y))

            torch.mm(_rows(ddelta), dt_proj, out=_rows(dmaps[..., :rank]))
            dmaps[..., rank : rank + n], dmaps[..., rank + n :] = dB, dC
            sums.dt_proj.addmm_(_rows(ddelta).t(), _rows(part.maps[..., :rank]))
            sums.x_proj.addmm_(_rows(dmaps).t(), _rows(part.u))
            _rows(du).addmm_(_rows(dmaps), x_proj)
            later_du = du_and_later[0, : conv_weight.shape[-1] - 1].clone()

            conv = part.conv
            conv.dy, conv.dx = _view(du.mT, "bcl"), _view(dxz[..., :d].mT, "bcl")
            conv.dweight = _view(of_chunk.conv_weight.squeeze(1), "cl")
            conv.dbias = _view(of_chunk.conv_bias, "c")
            _run("causal_conv1d_backward", conv)
            x_rows = _rows(x[chunk.items, chunk.start : chunk.stop].contiguous())
            sums.in_proj.addmm_(_rows(dxz).t(), x_rows)
            torch.mm(_rows(dxz), in_proj, out=_rows(dx[chunk.items, chunk.start : chunk.stop]))
            for name in added:
                getattr(sums, name).add_(getattr(of_chunk, name))
    return dx, *sums


@_mamba_mixer_cpp_backward.register_fake
def _(dout, saved, x, *weights):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, *weights))


def _save_for_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:-1], output[1])


def _backward(ctx, dout, _):
    refuse_tangents("cpp", dout=dout)
    *tensors, saved = ctx.saved_tensors
    if dout is None:
        return (None,) * (len(tensors) + 1)
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _mamba_mixer_cpp(*tensors, True)[1]
    return *_mamba_mixer_cpp_backward(dout, saved, *tensors), None


_mamba_mixer_cpp.register_autograd(_backward, setup_context=_save_for_backward)


class _Weights(NamedTuple):
    in_proj: Tensor
    conv_weight: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    out_proj: Tensor


class _Range(NamedTuple):
    """A chunk: whole items of the batch, or a part of one; tokens of that item around it."""

    items: slice
    start: int
    stop: int
    before: int
    after: int


def _outputs(x: Tensor, A: Tensor, out_proj: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, _ = x.shape
    d, n = A.shape
    saved = x.new_empty(0)
    if save_states:
        saved = _states_between(x, batch, length, d, 1, n)
    return x.new_empty((batch, length, out_proj.shape[0])), saved


def _divide(x: Tensor, weights: _Weights) -> tuple[list[_Range], dict[str, Tensor]]:
    """Chunks, in order, and buffers that all of them share, not yet made."""
    batch, length, _ = x.shape
    reach = weights.conv_weight.shape[-1] - 1
    most = max(1, CHUNK // weights.A.shape[0] // TILE) * TILE
    items, tokens = max(1, most // length), min(most, length)
    chunks = [
        _Range(
            slice(b, min(b + items, batch)),
            t,
            min(t + tokens, length),
            min(reach, t),
            min(reach, max(0, length - t - tokens)),
        )
        for b in range(0, batch, items)
        for t in range(0, length, tokens)
    ]
    return chunks, {}


class _Chunk:
    """What lies between x and the scan, for one chunk, and the C++ functions' arguments so far."""

    def __init__(
        self, x: Tensor, weights: _Weights, chunk: _Range, buffers: dict[str, Tensor]
    ) -> None:
        d, n = weights.A.shape
        rank = weights.dt_proj.shape[1]
        before, tokens = chunk.before, chunk.stop - chunk.start
        self.items = min(chunk.items.stop, x.shape[0]) - chunk.items.start
        self.tokens, self.x, self.buffers = tokens, x, buffers

        xz = self.buffer("xz", 2 * d, before + chunk.after)
        around = x[chunk.items, chunk.start - before : chunk.stop + chunk.after].contiguous()
        _linear(around, weights.in_proj, xz)
        here = xz[:, before : before + tokens]
        self.u = self.buffer("u", d)
        self.conv = _Conv(
            batch=self.items,
            channels=d,
            length=tokens,
            kernel=weights.conv_weight.shape[-1],
            before=before,
            after=chunk.after,
            threads=torch.get_num_threads(),
            isa=cpp._highest_isa,
            x=_view(here[..., :d].mT, "bcl"),
            weight=_view(weights.conv_weight.squeeze(1), "cl"),
            bias=_view(weights.conv_bias, "c"),
            y=_view(self.u.mT, "bcl"),
        )
        _run("causal_conv1d_forward", self.conv)
        self.maps = self.buffer("maps", rank + 2 * n)
        _linear(self.u, weights.x_proj, self.maps)
        dt, B, C = self.maps.split([rank, n, n], dim=-1)
        delta = self.buffer("delta", d)
        _linear(dt, weights.dt_proj, delta)
        self.scan = _arguments(
            self.u.mT,
            delta.mT,
            weights.A,
            B.mT,
            C.mT,
            weights.D,
            here[..., d:].mT,
            weights.dt_bias,
            True,
        )

    def buffer(self, name: str, width: int, more_tokens: int = 0) -> Tensor:
        """Memory for (items, tokens, width) that holds no value yet."""
        shape = (self.items, self.tokens + more_tokens, width)
        size = shape[0] * shape[1] * shape[2]
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = self.x.new_empty(size)
        return self.buffers[name][:size].view(shape)


class _Conv(ctypes.Structure):
    """The arguments of causal_conv1d_*, in csrc/causal_conv1d.h's order."""

    _fields_ = (
        *(
            (size, ctypes.c_int64)
            for size in ("batch", "channels", "length", "kernel", "before", "after")
        ),
        *((name, ctypes.c_int32) for name in ("threads", "isa")),
        *((x, _View) for x in ("x", "weight", "bias", "y", "dy", "dx", "dweight", "dbias")),
    )


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _linear(x: Tensor, weight: Tensor, out: Tensor) -> None:
    torch.mm(_rows(x), weight.t(), out=_rows(out))
