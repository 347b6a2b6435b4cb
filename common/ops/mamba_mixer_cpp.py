"""`mamba_mixer` on the CPU: one call of the C++ library forward, one backward.

Tokens are processed in chunks, forward from the first to the last and backward from the last to the
first, so that only x, the output and one state per TILE tokens ever leave the cache. The backward
pass computes a chunk's intermediates again: that takes less time than to write them to fresh memory
and to read them back.

Products with weights can be in bfloat16 where the processor has AMX: all but that with dt_proj,
whose ranks are few. Those of the weights' gradients are in float32.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from . import cpp
from .cpp import TILE, _run, _states_between, _View, _view, needs_grad
from .forward_mode import refuse_tangents

# Elements of a chunk's u, that is tokens times channels: some ten such tensors fit a core's cache.
CHUNK = 1 << 14


def mamba_mixer_cpp(x: Tensor, *weights: Tensor, products: torch.dtype) -> Tensor:
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
    bfloat16 = products == torch.bfloat16
    return _mamba_mixer_cpp(*single, needs_grad(*single), bfloat16)[0].to(x.dtype)


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
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass needs of the states between (or nothing)."""
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    out, saved = _outputs(x, A, out_proj, save_states)
    mixer, _dense = _arguments(x, weights, out, bfloat16)
    if save_states:
        mixer.saved = saved.data_ptr()
    _run("mamba_mixer_forward", mixer)
    return out, saved


@_mamba_mixer_cpp.register_fake
def _(
    x, in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj, save_states,
    bfloat16=False,
):  # fmt: skip
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
    bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    weights = _Weights(in_proj, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, A, D, out_proj)
    dx, grads = x.new_empty(x.shape), _Weights(*(w.new_empty(w.shape) for w in weights))
    mixer, _dense = _arguments(x, weights, dout, bfloat16)
    mixer.saved, mixer.dx = saved.data_ptr(), _view(dx, "blc")
    for name, grad in grads._asdict().items():
        setattr(mixer, f"d{name}", grad.data_ptr())
    _run("mamba_mixer_backward", mixer)
    return dx, *grads


@_mamba_mixer_cpp_backward.register_fake
def _(dout, saved, x, *weights_and_bfloat16):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, *weights_and_bfloat16[:-1]))


def _save_for_backward(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    *tensors, _, ctx.bfloat16 = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dout, _):
    refuse_tangents("cpp", dout=dout)
    *tensors, saved = ctx.saved_tensors
    if dout is None:
        return (None,) * (len(tensors) + 2)
    if saved.numel() == 0:  # the forward pass was told that nobody would ask
        saved = _mamba_mixer_cpp(*tensors, True, ctx.bfloat16)[1]
    return *_mamba_mixer_cpp_backward(dout, saved, *tensors, ctx.bfloat16), None, None


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


def _outputs(x: Tensor, A: Tensor, out_proj: Tensor, save_states: bool) -> tuple[Tensor, Tensor]:
    batch, length, _ = x.shape
    d, n = A.shape
    saved = x.new_empty(0)
    if save_states:
        saved = _states_between(x, batch, length, d, 1, n)
    return x.new_empty((batch, length, out_proj.shape[0])), saved


class _Mixer(ctypes.Structure):
    """The arguments of mamba_mixer_*, in csrc/mamba_mixer.h's order."""

    _fields_ = (
        *(
            (size, ctypes.c_int64)
            for size in ("batch", "length", "channels", "inner", "states", "rank", "taps")
        ),
        *((size, ctypes.c_int64) for size in ("outputs", "chunk")),
        *((name, ctypes.c_int32) for name in ("threads", "isa", "bfloat16", "unused")),
        *((name, _View) for name in ("x", "out")),
        *((name, ctypes.c_void_p) for name in (*_Weights._fields, "saved")),
        ("dx", _View),
        *((f"d{name}", ctypes.c_void_p) for name in _Weights._fields),
    )


def _arguments(
    x: Tensor, weights: _Weights, out: Tensor, bfloat16: bool
) -> tuple[_Mixer, _Weights]:
    """The arguments of both passes; and the weights, that have to live as long as these."""
    dense = _Weights(*(weight.contiguous() for weight in weights))
    batch, length, channels = x.shape
    (inner, states), taps = dense.A.shape, dense.conv_weight.shape[-1]
    tokens = min(max(1, CHUNK // inner, taps - 1), length)
    mixer = _Mixer(
        batch=batch,
        length=length,
        channels=channels,
        inner=inner,
        states=states,
        rank=dense.dt_proj.shape[1],
        taps=taps,
        outputs=dense.out_proj.shape[0],
        chunk=(tokens + TILE - 1) // TILE * TILE,
        threads=torch.get_num_threads(),
        isa=cpp._highest_isa,
        bfloat16=bfloat16,
        x=_view(x, "blc"),
        out=_view(out, "blc"),
        **{name: weight.data_ptr() for name, weight in dense._asdict().items()},
    )
    return mixer, dense
