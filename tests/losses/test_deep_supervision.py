import pytest
import torch
from monai.losses import DeepSupervisionLoss

from common.losses import WeightedDeepSupervisionLoss, deep_supervision_weights


def test_weights_halve_but_for_the_coarsest():
    assert deep_supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert deep_supervision_weights(2) == [1, 0]
    assert deep_supervision_weights(1) == [1]


def test_no_scale_is_refused():
    with pytest.raises(ValueError, match="scales is 0; allowed are whole numbers from 1"):
        deep_supervision_weights(0)


def scale_and_size(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss that tells a scale's logits and its target's size, so that a sum shows each weight."""
    return y.mean() * target.shape[-1]


def test_monai_weighs_each_scale_by_them():
    loss = DeepSupervisionLoss(scale_and_size, weights=deep_supervision_weights(4))
    logits = [torch.full((1, 2, n, n), float(n)) for n in (16, 8, 4, 2)]
    value = loss(logits, torch.zeros(1, 1, 16, 16))
    assert value.item() == pytest.approx((4 * 16**2 + 2 * 8**2 + 4**2) / 7)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 8, 4, 2), (4 * 16**2 + 2 * 8**2 + 4**2) / 7),
        ((16, 8, 4), (2 * 16**2 + 8**2) / 3),
        ((16, 8), 16**2),
    ],
)
def test_weights_follow_the_number_of_scales(sizes: tuple[int, ...], expected: float):
    loss, target = WeightedDeepSupervisionLoss(scale_and_size), torch.zeros(1, 1, 16, 16)
    logits = [torch.full((1, 2, n, n), float(n)) for n in sizes]
    assert loss(logits, target).item() == pytest.approx(expected)
    assert loss(logits[0], target).item() == 16**2  # a network of one output
