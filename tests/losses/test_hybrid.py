import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.losses import HybridLoss


def case(channels: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    target = torch.randint(max(channels, 2), (2, 1, 5, 6, 7))
    return torch.randn(2, channels, 5, 6, 7), target


def terms(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Each term from its definition, with MONAI's smoothing of 1e-5."""
    if logits.shape[1] == 1:
        p, y = logits.sigmoid(), target.float()
        bce = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    else:
        p, y = logits.softmax(1), F.one_hot(target[:, 0], logits.shape[1]).movedim(-1, 1)
        bce = -(y * p.log()).sum(1).mean()
        p, y = p[:, 1:], y[:, 1:]
    tp, fp, fn = (x.sum((0, 2, 3, 4)) for x in (p * y, p * (1 - y), (1 - p) * y))
    dice = 1 - (2 * tp + 1e-5) / (2 * tp + fp + fn + 1e-5)
    tversky = 1 - (tp + 1e-5) / (tp + 0.2 * fp + 0.9 * fn + 1e-5)
    return {"bce": bce, "dice": dice.mean(), "tversky": tversky.mean()}


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_kinds_are_their_definitions(channels: int):
    logits, target = case(channels)
    of = terms(logits, target)
    expected = of | {
        "dice_bce": 0.3 * of["dice"] + 0.7 * of["bce"],
        "tversky_bce": 0.3 * of["tversky"] + 0.7 * of["bce"],
    }
    for kind, value in expected.items():
        loss = HybridLoss(kind, weight=0.3, fp_weight=0.2, fn_weight=0.9)(logits, target)
        torch.testing.assert_close(loss, value)


@pytest.mark.parametrize("kind", ["dice_bce", "tversky_bce", "dice", "tversky", "bce"])
@pytest.mark.parametrize("channels", [1, 3])
def test_extremes_are_finite(kind: str, channels: int):
    for value in (-1e4, 1e4):
        logits = torch.full((1, channels, 4, 4, 4), value, requires_grad=True)
        loss = HybridLoss(kind)(logits, torch.zeros(1, 1, 4, 4, 4))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "focal"}, "kind is 'focal'; allowed are 'dice_bce'"),
        ({"weight": 1.1}, "weight is 1.1; allowed is 0 <= weight <= 1"),
        ({"fp_weight": -1}, "fp_weight is -1; allowed are numbers from 0"),
        ({"fn_weight": -1}, "fn_weight is -1"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        HybridLoss(**change)


def test_other_shapes_are_named():
    with pytest.raises(ValueError, match=r"target has shape \(2, 3, 4\); allowed is"):
        HybridLoss()(torch.zeros(2, 1, 4), torch.zeros(2, 3, 4))
