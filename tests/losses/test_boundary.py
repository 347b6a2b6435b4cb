import math

import pytest
import torch
from monai.losses import DeepSupervisionLoss

from common.losses import BoundaryAwareBCEDiceLoss


def disc(size: int = 24, radius: int = 7) -> torch.Tensor:
    axis = torch.arange(size) - size // 2
    return ((axis[:, None] ** 2 + axis[None] ** 2) < radius**2).long()[None, None]


def near_boundary(target: torch.Tensor, width: int) -> torch.Tensor:
    """By looking around every pixel."""
    image = target[0, 0]
    near = torch.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            around = image[max(0, i - width) : i + width + 1, max(0, j - width) : j + width + 1]
            near[i, j] = around.min() != around.max()
    return near


@pytest.mark.parametrize("width", [1, 3])
def test_terms_of_one_channel(width: int):
    torch.manual_seed(0)
    target, logits = disc(), torch.randn(1, 1, 24, 24, dtype=torch.float64)
    p = logits.sigmoid()
    bce = -(target * p.log() + (1 - target) * (1 - p).log())
    dice = 1 - (2 * (p * target).sum() + 1e-5) / (p.sum() + target.sum() + 1e-5)
    near = near_boundary(target, width)
    boundary = (bce[0, 0] * near).sum() / near.sum()
    loss = BoundaryAwareBCEDiceLoss(0.3, 0.7, width)(logits, target)
    expected = 0.3 * bce.mean() + 0.7 * dice + 0.7 * boundary
    torch.testing.assert_close(loss, expected)


def test_two_channels_of_a_softmax_are_one_of_a_sigmoid():
    torch.manual_seed(0)
    target, logit = disc(), torch.randn(1, 1, 24, 24)
    loss = BoundaryAwareBCEDiceLoss()
    both = torch.cat((torch.zeros_like(logit), logit), 1)
    torch.testing.assert_close(loss(both, target), loss(logit, target))


def test_a_mistake_at_the_boundary_costs_more():
    target = disc()
    right = (target.float() * 2 - 1) * 3
    inside, edge = right.clone(), right.clone()
    inside[..., 12, 12] *= -1
    edge[..., 12, 18] *= -1
    with_term, without = BoundaryAwareBCEDiceLoss(), BoundaryAwareBCEDiceLoss(boundary_weight=0)
    assert with_term(edge, target) > with_term(inside, target) + 1e-3
    torch.testing.assert_close(without(edge, target), without(inside, target))


@pytest.mark.parametrize("channels", [1, 3])
def test_extremes_are_finite(channels: int):
    for value in (-1e4, 0.0, 1e4):
        logits = torch.full((2, channels, 8, 8), value, requires_grad=True)
        loss = BoundaryAwareBCEDiceLoss()(logits, torch.zeros(2, 1, 8, 8))
        loss.backward()
        assert math.isfinite(loss.item())
        assert torch.isfinite(logits.grad).all()


def test_all_scales_in_two_and_three_dimensions():
    loss = DeepSupervisionLoss(BoundaryAwareBCEDiceLoss(), weight_mode="same")
    for shape in ((16, 16), (8, 8, 8)):
        scales = [torch.randn(2, 3, *shape) for _ in range(4)]
        target = torch.randint(0, 3, (2, 1, *shape))
        each = sum(loss(scale, target) for scale in scales)
        torch.testing.assert_close(loss(scales, target), each)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bce_weight": 1.5}, r"bce_weight is 1\.5; allowed is 0 <= bce_weight <= 1"),
        ({"boundary_weight": -1}, "boundary_weight is -1"),
        ({"boundary_width": 0}, "boundary_width is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundaryAwareBCEDiceLoss(**arguments)


def test_a_target_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"target has shape \(1, 2, 8, 8\); allowed is one"):
        BoundaryAwareBCEDiceLoss()(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8))
