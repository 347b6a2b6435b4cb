from __future__ import annotations

import pytest
import torch
from torch import nn

from common.optimizers import clip_gradients


def parameters(*gradients: float) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(())) for _ in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return found


def test_gradients_of_all_groups_are_clipped_together():
    x, y = parameters(3.0, 4.0)
    optimizer = torch.optim.SGD([{"params": [x]}, {"params": [y]}], lr=1.0)
    clip_gradients(optimizer, 1.0).step()
    assert (x.item(), y.item()) == (pytest.approx(-0.6), pytest.approx(-0.8))


def test_small_gradients_stay():
    (x,) = parameters(3.0)
    clip_gradients(torch.optim.SGD([x], lr=1.0), 12.0).step()
    assert x.item() == -3.0


def test_what_a_scaler_scales_is_clipped_unscaled():
    """Of the gradient 3, scaled by 1024, the step is still 3, and of 30 it is 12."""
    for gradient, step in ((3.0, 3.0), (30.0, 12.0)):
        x = nn.Parameter(torch.zeros(()))
        optimizer = clip_gradients(torch.optim.SGD([x], lr=1.0), 12.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(gradient * x).backward()
        assert x.grad.item() == 1024 * gradient
        scaler.step(optimizer)
        assert x.item() == pytest.approx(-step)


def test_arguments_are_checked():
    (x,) = parameters(1.0)
    with pytest.raises(ValueError, match="max_norm is 0; allowed are numbers above 0"):
        clip_gradients(torch.optim.SGD([x], lr=1.0), 0)
    with pytest.raises(ValueError, match="a fused Adam; allowed are those with fused=False"):
        clip_gradients(torch.optim.Adam([x], fused=True), 1.0)
