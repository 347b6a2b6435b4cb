"""FLOPs of a network's forward pass, the selective scan among them.

What counts is stated once: matrix products, convolutions and attention's two products, with 2 for a
multiply-add, as torch's `FlopCounterMode` has them (a bias is not counted); and the selective scan,
for each token and channel 7 for each of its n states: delta A, its exponential, delta u B, and the
multiply-adds of the state and of the output; 1 for delta u; 2 for the skip D; and 2 for the gate,
SiLU's product and its own. (VMamba's code says 9 a state instead.) A scan in four orders is four.

Norms, activations, softmax, pooling, resizing and what else goes element by element are not
counted: torch has no formula for them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .selective_scan import BACKENDS

Shape = Sequence[int]


def count_flops(network: nn.Module, shape: Shape) -> int:
    """FLOPs of a forward pass in eval mode, of images of a shape (b, c, ...).

    A copy of the network runs on torch's meta device: nothing is computed, and every scan goes one
    way, so that the count does not depend on the backend that the network names.

    Raises:
        Exception: whatever the network raises for such images, or for a device without values.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which says it where there is no Triton

    network = copy.deepcopy(network).eval().to("meta")
    for module in network.modules():
        if getattr(module, "backend", None) in BACKENDS:
            # Others take no such tensors, or do what has no formula.
            module.backend = "auto"  # type: ignore[assignment]
    counter = FlopCounterMode(display=False, custom_mapping=flop_formulas())
    with torch.no_grad(), counter:
        network(torch.empty(tuple(shape), device="meta"))
    return counter.get_total_flops()


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Of this package's operators, for `FlopCounterMode`'s `custom_mapping`.

    Forward passes alone; a norm's formula is 0, as torch's own norms are. With them a pass on a CPU
    or a GPU, by whichever operators, counts what `count_flops` does.
    """
    return {getattr(torch.ops.monai_mamba, name): flops for name, flops in _FORMULAS.items()}


# The arguments of a formula are those of the operator, with shapes in the place of tensors.


def _scan(
    u: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    z: Shape | None,
    *_: Any,
    **__: Any,
) -> int:
    return math.prod(u) * _of_a_token(A[1], D is not None, z is not None)


def _scan_2d(
    u: Shape, delta: Shape, A: Shape, B: Shape, C: Shape, D: Shape | None, *_: Any, **__: Any
) -> int:
    return 4 * math.prod(u) * _of_a_token(A[2], D is not None, gate=False)


def _of_a_token(n: int, skip: bool, gate: bool) -> int:
    """Of one token of one channel."""
    return 7 * n + 1 + 2 * skip + 2 * gate


def _mixer(
    x: Shape,
    in_proj: Shape,
    conv_weight: Shape,
    conv_bias: Shape,
    x_proj: Shape,
    dt_proj: Shape,
    dt_bias: Shape,
    A: Shape,
    D: Shape,
    out_proj: Shape,
    *_: Any,
    **__: Any,
) -> int:
    batch, length, _channels = x
    d, n = A
    weights = (in_proj, conv_weight, x_proj, dt_proj, out_proj)
    products = sum(2 * math.prod(weight) for weight in weights)  # each weight meets each token once
    return batch * length * (products + d * _of_a_token(n, skip=True, gate=True))


def _depthwise_conv(x: Shape, weight: Shape, **_: Any) -> int:
    return 2 * math.prod(x) * math.prod(weight[2:])


def _residual_norm_linear(
    x: Shape,
    skip: Shape | None,
    scale: Shape | None,
    norm_weight: Shape,
    norm_bias: Shape,
    weight: Shape,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * math.prod(x) * weight[0]


def _norm(*_: Any, **__: Any) -> int:
    return 0


_FORMULAS: dict[str, Callable[..., int]] = {
    "selective_scan": _scan,
    "selective_scan_cpp": _scan,
    "selective_scan_triton": _scan,
    "selective_scan_2d_cpp": _scan_2d,
    "selective_scan_2d_triton": _scan_2d,
    "mamba_mixer_cpp": _mixer,
    "mamba_mixer_triton": _mixer,
    "depthwise_conv_cpp": _depthwise_conv,
    "residual_norm_linear_cpp": _residual_norm_linear,
    "layer_norm_cpp": _norm,
    "group_norm_cpp": _norm,
}
