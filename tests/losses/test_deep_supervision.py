import pytest
import torch
from monai.losses import DeepSupervisionLoss

from common.losses import deep_supervision_weights


def test_weights_halve_but_for_the_coarsest():
    assert deep_supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert deep_supervision_weights(2) == [1, 0]
    assert deep_supervision_weights(1) == [1]


def test_no_scale_is_refused():
    with pytest.raises(ValueError, match="scales is 0; allowed are whole numbers from 1"):
        deep_supervision_weights(0)


def test_monai_weighs_each_scale_by_them():
    # A scale's loss tells its logits and the target's size, so that the sum shows every weight.
    loss = DeepSupervisionLoss(
        lambda y, target: y.mean() * target.shape[-1], weights=deep_supervision_weights(4)
    )
    logits = [torch.full((1, 2, n, n), float(n)) for n in (16, 8, 4, 2)]
    value = loss(logits, torch.zeros(1, 1, 16, 16))
    assert value.item() == pytest.approx((4 * 16**2 + 2 * 8**2 + 4**2) / 7)
