"""What a target marks as ignored has no part in any loss: neither its logits nor its gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from monai import losses as monai_losses
from monai.losses import DeepSupervisionLoss
from torch import Tensor

from common import losses
from common.ignored import IGNORED

Loss = Callable[[Tensor, Tensor], Tensor]
SIZE = (6, 8, 8)


def softmax_dice_ce(batch: bool, kind: type = losses.DiceCELoss) -> Loss:
    return kind(to_onehot_y=True, softmax=True, batch=batch)


def beside_a_branch(logits: Tensor, target: Tensor) -> Tensor:
    loss = losses.VAERegularisedLoss(softmax_dice_ce(True))
    return loss([logits, logits.new_zeros(len(logits))], target)


# name -> the loss, channels of the logits, channels of the target
LOSSES: dict[str, tuple[Loss, int, int]] = {
    "DiceCELoss, batch": (softmax_dice_ce(True), 3, 1),
    "DiceCELoss, samples": (softmax_dice_ce(False), 3, 1),
    "DiceCELoss, one channel": (losses.DiceCELoss(sigmoid=True), 1, 1),
    "DiceBCELoss": (losses.DiceBCELoss(), 3, 3),
    "DiceBCELoss, batch": (losses.DiceBCELoss(batch=True), 3, 3),
    "CodebookMambaLoss": (losses.CodebookMambaLoss(), 2, 2),
    "HybridLoss, one channel": (losses.HybridLoss(), 1, 1),
    "HybridLoss, Tversky": (losses.HybridLoss("tversky_bce"), 3, 1),
    "HybridLoss, BCE": (losses.HybridLoss("bce"), 3, 1),
    "BoundaryAwareBCEDiceLoss": (losses.BoundaryAwareBCEDiceLoss(), 3, 1),
    "BoundaryAwareBCEDiceLoss, one channel": (losses.BoundaryAwareBCEDiceLoss(), 1, 1),
    "RegionSpecificTverskyLoss": (losses.RegionSpecificTverskyLoss(3), 3, 1),
    "RegionSpecificTverskyLoss, samples": (
        losses.RegionSpecificTverskyLoss(3, batch=False, penalties="fixed"),
        3,
        1,
    ),
    "DiceCERegionTverskyLoss": (losses.DiceCERegionTverskyLoss(3), 3, 1),
    "VAERegularisedLoss": (beside_a_branch, 3, 1),
    "DeepSupervisionLoss": (DeepSupervisionLoss(softmax_dice_ce(True)), 3, 1),
}
# Those that know nothing of where a voxel is.
ANYWHERE = [name for name in LOSSES if not name.startswith(("Boundary", "Region", "DiceCERegion"))]


def case(name: str) -> tuple[Loss, Tensor, Tensor, Tensor]:
    """The loss, logits, a target with ignored voxels, and where these are, (b, 1, ...)."""
    loss, channels, target_channels = LOSSES[name]
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, channels, *SIZE, dtype=torch.float64)
    classes = 2 if target_channels > 1 or channels == 1 else channels
    target = torch.randint(classes, (2, target_channels, *SIZE)).double()
    ignored = torch.rand(2, 1, *SIZE) < 0.4
    ignored[0, ..., :3] = True  # whole regions, and of one sample more than of the other
    return loss, logits, target.masked_fill(ignored, IGNORED), ignored


def value_and_gradient(loss: Loss, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("other", [0.0, 30.0, torch.inf, torch.nan])
def test_ignored_logits_have_no_part(name: str, other: float):
    loss, logits, target, ignored = case(name)
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (gradient.masked_select(ignored) == 0).all()
    assert (gradient.masked_select(~ignored) != 0).float().mean() > 0.9
    changed = value_and_gradient(loss, logits.masked_fill(ignored, other), target)
    assert torch.equal(changed[0], value)
    assert torch.equal(changed[1], gradient)


@pytest.mark.parametrize("name", [name for name in LOSSES if "Region" not in name])
def test_ignored_voxels_beyond_the_others_change_nothing(name: str):
    loss, logits, target, _ = case(name)
    target = target.abs()
    with_more = [torch.cat([x, torch.full_like(x, -1)], -1) for x in (logits, target)]
    value, gradient = value_and_gradient(loss, logits, target)
    other_value, other_gradient = value_and_gradient(loss, *with_more)
    torch.testing.assert_close(other_value, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(other_gradient[..., : SIZE[-1]], gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ANYWHERE)
def test_the_loss_is_that_of_the_other_voxels_alone(name: str):
    """Of each sample the same number, so that they make a batch of their own."""
    loss, logits, target, _ = case(name)
    ignored = torch.zeros(2, *SIZE, dtype=torch.bool)
    for sample in ignored:
        sample.view(-1)[torch.randperm(sample.numel())[:100]] = True
    target = target.abs().masked_fill(ignored[:, None], IGNORED)
    left = [
        torch.stack([x[i][:, ~ignored[i]] for i in range(2)]).reshape(2, x.shape[1], 4, 1, -1)
        for x in (logits, target)
    ]
    torch.testing.assert_close(loss(logits, target), loss(*left), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("batch", [True, False])
def test_dice_ce_is_monais_of_the_other_voxels(batch: bool):
    _, logits, target, ignored = case("DiceCELoss, batch")
    known = ~ignored[:, 0]
    both = [x.movedim(1, -1)[known].T[None] for x in (logits, target)]
    each = [
        [x[i : i + 1].movedim(1, -1)[known[i : i + 1]].T[None] for x in (logits, target)]
        for i in range(2)
    ]
    monais = softmax_dice_ce(True, monai_losses.DiceCELoss)
    dice = [monais.dice(*pair) for pair in ([both] if batch else each)]
    expected = torch.stack(dice).mean() + monais.ce(*both)
    torch.testing.assert_close(softmax_dice_ce(batch)(logits, target), expected)


def test_regions_are_means_of_their_other_voxels():
    """A region is the one voxel that is left in it; one without any is left out."""
    torch.manual_seed(0)
    logits, target = torch.randn(1, 3, 6, 6), torch.randint(3, (1, 1, 6, 6)).float()
    marked = torch.full_like(target, IGNORED)
    for i, j in ((0, 0), (0, 3), (3, 3)):
        marked[..., i, j] = target[..., i, j]
    loss = losses.RegionSpecificTverskyLoss(2)
    alone = [
        loss(logits[..., i : i + 1, j : j + 1], target[..., i : i + 1, j : j + 1])
        for i, j in ((0, 0), (0, 3), (3, 3))
    ]
    torch.testing.assert_close(loss(logits, marked), torch.stack(alone).mean())


def test_no_boundary_is_between_classes_and_ignored_voxels():
    target = torch.zeros(1, 1, 1, 12)
    target[..., 6:8], target[..., 8:] = IGNORED, 1
    near = losses.BoundaryAwareBCEDiceLoss(boundary_width=2)._near_boundary
    known = target[0, 0, 0] >= 0
    assert not near(target)[0, 0, 0, known].any()
    wide = losses.BoundaryAwareBCEDiceLoss(boundary_width=3)._near_boundary(target)[0, 0, 0]
    assert wide[known].nonzero().flatten().tolist() == [5, 6]  # of the ten that are known


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_but_ignored_voxels(name: str):
    loss, logits, target, _ = case(name)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(target, IGNORED))
    assert value.abs() < 1e-6
    assert (gradient == 0).all()
    one_sample = target.clone()
    one_sample[0] = IGNORED
    value, gradient = value_and_gradient(loss, logits, one_sample)
    assert value.isfinite()
    assert (gradient[0] == 0).all()
    assert gradient[1].any()


def test_every_loss_is_here():
    here = {name.partition(",")[0] for name in LOSSES} - {"DeepSupervisionLoss"}
    # Logits alone, and a sum of others over scales.
    here |= {"InclusionLoss", "WeightedDeepSupervisionLoss"}
    assert {name for name in losses.__all__ if name.endswith("Loss")} == here


def test_overlapping_regions_are_binary():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(2, (2, 3, 4, 5)).float()
    p = logits.sigmoid()
    entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    for batch in (False, True):
        axes = (0, 2, 3) if batch else (2, 3)
        overlap = 2 * (p * target).sum(axes) + 1e-5
        dice = 1 - overlap / (p.sum(axes) + target.sum(axes) + 1e-5)
        loss = losses.DiceBCELoss(batch)(logits, target)
        torch.testing.assert_close(loss, dice.mean() + entropy)
