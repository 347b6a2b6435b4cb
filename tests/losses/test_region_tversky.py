import itertools
import json

import pytest
import torch
from monai.losses import DeepSupervisionLoss, DiceCELoss, DiceLoss

from common.losses import DiceCERegionTverskyLoss, RegionSpecificTverskyLoss

from ..conftest import shared

PENALTIES = ["adaptive", "fixed", "equal"]


def random_case(*size: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (2, 1, *size), generator=generator)


def test_golden():
    import numpy as np

    case = json.loads(shared("gold/region_tversky.json").read_text())
    with np.load(shared("gold/region_tversky.npz")) as vectors:
        logits, target, wanted, gradient = (
            torch.from_numpy(vectors[name]) for name in ("logits", "target", "loss", "grad")
        )
    loss_function = RegionSpecificTverskyLoss(
        case["regions_per_axis"],
        alpha=case["alpha"],
        beta=case["beta"],
        include_background=case["do_bg"],
        batch=case["batch_dice"],
        smooth=case["smooth"],
    )
    loss = loss_function(logits.requires_grad_(), target)
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad, gradient, rtol=1e-6, atol=0)


def looped(
    logits: torch.Tensor,
    target: torch.Tensor,
    regions: tuple[int, ...],
    penalties: str,
    include_background: bool,
    batch: bool,
) -> float:
    """The loss one region, class and sample at a time, for regions that divide the size."""
    samples = [[0, 1]] if batch else [[0], [1]]
    classes = range(0 if include_background else 1, logits.shape[1])
    edges = [size // n for size, n in zip(logits.shape[2:], regions, strict=True)]
    scores, s = [], 1e-5
    for index in itertools.product(*map(range, regions)):
        region = tuple(slice(i * e, (i + 1) * e) for i, e in zip(index, edges, strict=True))
        for c, group in itertools.product(classes, samples):
            tp = fp = fn = 0.0
            for b in group:
                p = logits[b].softmax(0)[c][region]
                y = target[b, 0][region] == c
                tp += p[y].sum().item() / p.numel()
                fp += p[~y].sum().item() / p.numel()
                fn += (1 - p)[y].sum().item() / p.numel()
            alpha, beta = {"fixed": (0.3, 0.7), "equal": (0.5, 0.5)}.get(penalties, (0.0, 0.0))
            if penalties == "adaptive":
                alpha = 0.3 + 0.4 * (fp + s) / (fp + fn + s)
                beta = 0.3 + 0.4 * (fn + s) / (fp + fn + s)
            scores.append((tp + s) / (tp + alpha * fp + beta * fn + s))
    return -sum(scores) / len(scores)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(("size", "regions"), [((6, 8), (3, 2)), ((4, 6, 2), (2, 3, 1))])
def test_equals_a_loop_over_regions(
    size: tuple[int, ...],
    regions: tuple[int, ...],
    penalties: str,
    include_background: bool,
    batch: bool,
):
    options = {"penalties": penalties, "include_background": include_background, "batch": batch}
    logits, target = random_case(*size)
    loss = RegionSpecificTverskyLoss(regions, **options)(logits, target)
    assert loss.item() == pytest.approx(looped(logits, target, regions, **options), rel=1e-12)


@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("size", [(5, 4), (5, 4, 3)])
def test_gradient(penalties: str, size: tuple[int, ...]):
    logits, target = random_case(*size)
    loss_function = RegionSpecificTverskyLoss(2, penalties=penalties)
    assert torch.autograd.gradcheck(lambda x: loss_function(x, target), logits.requires_grad_())


def test_no_more_regions_than_voxels():
    logits, target = random_case(3, 4, 6)
    loss = RegionSpecificTverskyLoss(16)(logits, target)
    assert loss == RegionSpecificTverskyLoss((3, 4, 6))(logits, target)
    assert loss != RegionSpecificTverskyLoss((3, 4, 3))(logits, target)


def test_sixteen_bit_logits_are_read_in_float32():
    logits, target = random_case(8, 8, 8)
    half = logits.bfloat16()
    loss_function = RegionSpecificTverskyLoss(4)
    assert loss_function(half, target) == loss_function(half.float(), target)


@pytest.mark.parametrize("batch", [True, False])
def test_sum_with_cross_entropy_and_dice(batch: bool):
    logits, target = random_case(8, 6, 4)
    p, y = logits.softmax(1), torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1)
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    overlap, total = (p * y).sum(axes), (p + y).sum(axes)
    dice = (2 * overlap + 1e-5) / (total + 1e-5)
    cross_entropy = -(p.log() * y).sum(1).mean()
    tversky = RegionSpecificTverskyLoss(2, batch=batch)(logits, target)
    wanted = cross_entropy + 1 - dice[..., 1:].mean() + 0.8 * tversky
    loss = DiceCERegionTverskyLoss(2, batch=batch)(logits, target)
    torch.testing.assert_close(loss, wanted)

    without = DiceCERegionTverskyLoss(2, batch=batch, lambda_tversky=0.0)(logits, target)
    plain = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=batch)
    torch.testing.assert_close(without, plain(logits, target))


@pytest.mark.parametrize("penalties", ["fixed", "equal"])
def test_ablations_reach_the_sum(penalties: str):
    logits, target = random_case(8, 6, 4)
    both = (penalties, "adaptive")
    one, other = (DiceCERegionTverskyLoss(2, penalties=p)(logits, target) for p in both)
    terms = [RegionSpecificTverskyLoss(2, penalties=p)(logits, target) for p in both]
    torch.testing.assert_close(one - other, 0.8 * (terms[0] - terms[1]))


def test_equal_penalties_are_the_dice_of_each_region():
    logits, target = random_case(4, 4)
    loss = RegionSpecificTverskyLoss((2, 1), penalties="equal", smooth=1e-9)(logits, target)
    dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    halves = [dice(logits[:, :, rows], target[:, :, rows]) - 1 for rows in (slice(2), slice(2, 4))]
    torch.testing.assert_close(loss, torch.stack(halves).mean(), rtol=1e-5, atol=0)


def test_deep_supervision_meets_each_scale_with_its_labels():
    target = torch.zeros(1, 1, 8, 8, 8)
    target[..., 4:] = 1
    perfect = [
        20 * torch.nn.functional.one_hot(label[:, 0].long(), 2).movedim(-1, 1) - 10.0
        for label in (target, target[:, :, ::2, ::2, ::2], target[:, :, ::4, ::4, ::4])
    ]
    loss_function = DeepSupervisionLoss(DiceCERegionTverskyLoss(), weights=[0.5, 0.3, 0.2])
    assert loss_function(perfect, target).item() == pytest.approx(-0.8, abs=1e-3)
    assert loss_function([-y for y in perfect], target) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions_per_axis": 0}, "regions_per_axis is 0; allowed are whole numbers from 1"),
        ({"regions_per_axis": (4, 0, 4)}, r"regions_per_axis is \(4, 0, 4\)"),
        ({"regions_per_axis": ()}, r"regions_per_axis is \(\)"),
        ({"alpha": -0.1}, "alpha is -0.1; allowed are numbers from 0"),
        ({"beta": -1}, "beta is -1"),
        ({"smooth": 0}, "smooth is 0; allowed are numbers above 0"),
        ({"penalties": "dice"}, "penalties is 'dice'; allowed are 'adaptive', 'fixed', 'equal'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RegionSpecificTverskyLoss(**arguments)


@pytest.mark.parametrize("loss_function", [RegionSpecificTverskyLoss, DiceCERegionTverskyLoss])
@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ((2, 3, 8), (2, 1, 8), r"logits has shape \(2, 3, 8\); allowed are"),
        ((2, 1, 8, 8), (2, 1, 8, 8), "logits has 1 class; allowed are 2 or more"),
        ((2, 3, 8, 8), (2, 8, 8), r"target has shape \(2, 8, 8\); allowed is \(2, 1, 8, 8\)"),
        ((2, 3, 8, 8), (2, 3, 8, 8), r"target has shape \(2, 3, 8, 8\)"),
        ((2, 3, 8, 8), (2, 1, 4, 8), r"target has shape \(2, 1, 4, 8\)"),
    ],
)
def test_bad_shapes_are_named(loss_function, logits: tuple, target: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        loss_function()(torch.zeros(logits), torch.zeros(target))


def test_regions_for_other_axes_are_named():
    with pytest.raises(ValueError, match=r"regions_per_axis is \(4, 4, 4\); allowed is one number"):
        RegionSpecificTverskyLoss((4, 4, 4))(torch.zeros(1, 2, 8, 8), torch.zeros(1, 1, 8, 8))
