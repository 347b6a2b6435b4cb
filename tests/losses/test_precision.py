"""Every loss of 16-bit logits, and its gradients, are what float64 makes of the same logits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import Tensor

from common import losses

from ..conftest import REPOSITORY

BUNDLES = sorted(path.name for path in (REPOSITORY / "bundles").iterdir() if path.is_dir())
SCALE = 2.0**14  # of a loss, as GradScaler's: gradients of a mean are too small for float16

Loss = Callable[[Any, Tensor], Tensor]


def beside_a_branch(logits: Tensor, target: Tensor) -> Tensor:
    """That of the branch is nearly as large as float16 allows."""
    loss = losses.VAERegularisedLoss(losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True))
    return loss([logits, logits.new_full((len(logits),), 2.0**15)], target)


# name -> the loss, channels of the logits, channels of the target
LOSSES: dict[str, tuple[Callable[[], Loss], int, int]] = {
    "BoundaryAwareBCEDiceLoss, 1 channel": (losses.BoundaryAwareBCEDiceLoss, 1, 1),
    "BoundaryAwareBCEDiceLoss, 3 channels": (losses.BoundaryAwareBCEDiceLoss, 3, 1),
    "CodebookMambaLoss": (losses.CodebookMambaLoss, 2, 2),
    "DiceBCELoss": (losses.DiceBCELoss, 3, 3),
    "DiceCELoss": (lambda: losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True), 3, 1),
    "DiceCERegionTverskyLoss": (losses.DiceCERegionTverskyLoss, 3, 1),
    "HybridLoss, 1 channel": (losses.HybridLoss, 1, 1),
    "HybridLoss, 3 channels": (lambda: losses.HybridLoss("tversky_bce"), 3, 1),
    "InclusionLoss": (lambda: lambda logits, target: losses.InclusionLoss()(logits), 2, 1),
    "VAERegularisedLoss": (lambda: beside_a_branch, 3, 1),
    "RegionSpecificTverskyLoss": (losses.RegionSpecificTverskyLoss, 3, 1),
}


def logits_and_target(channels: int, target_channels: int, large: bool) -> tuple[Tensor, Tensor]:
    """Of more voxels than float16 can count; large is nearly the largest number that it has."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, channels, 48, 40, 40, generator=generator)
    logits = 6e4 * logits.sign() if large else 3 * logits
    classes = max(channels, 2) if target_channels == 1 else 2
    target = torch.randint(classes, (2, target_channels, 48, 40, 40), generator=generator)
    return logits, target.float()


def assert_near_float64(
    loss: Loss, logits: Tensor, target: Tensor, amp: bool, wrap: Callable = lambda x: x
):
    """Hold the loss of 16-bit logits and its gradient to those in float64."""
    values, grads = [], []
    for x in (logits, logits.double()):
        x = x.detach().requires_grad_()
        half = amp and x.dtype != torch.float64
        with torch.autocast("cpu", logits.dtype) if half else contextlib.nullcontext():
            value = loss(wrap(x), target)
        (value * SCALE).backward()
        values.append(value)
        grads.append(x.grad)
    assert values[0].dtype == torch.float32
    torch.testing.assert_close(values[0].double(), values[1].double(), rtol=1e-5, atol=1e-6)
    assert grads[0].dtype == logits.dtype
    close = {"rtol": 2 * torch.finfo(logits.dtype).eps, "atol": 1e-6}
    torch.testing.assert_close(grads[0].double(), grads[1], **close)


@pytest.mark.parametrize("amp", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_sixteen_bits(name: str, dtype: torch.dtype, large: bool, amp: bool):
    make, *channels = LOSSES[name]
    logits, target = logits_and_target(*channels, large=large)
    assert_near_float64(make(), logits.to(dtype), target, amp)


def test_every_loss_is_here():
    here = {name.partition(",")[0] for name in LOSSES} | {"WeightedDeepSupervisionLoss"}
    assert {name for name in losses.__all__ if name.endswith("Loss")} == here


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BUNDLES)
def test_sixteen_bits_in_training(name: str, dtype: torch.dtype):
    """The loss of a bundle's own config, of what its network gives in training."""
    parser = ConfigParser()
    parser.read_config(REPOSITORY / f"bundles/{name}/configs/train.json")
    network = parser["network_def#_target_"].rpartition(".")[-1]
    outputs = {"CodebookMambaUNet": (2, 2), "LiverTumourCascade": (1, 1), "VMUNet": (1, 1)}
    logits, target = logits_and_target(*outputs.get(network, (3, 1)), large=False)

    def of_training(x: Tensor) -> Any:
        if network == "CodebookMambaUNet":
            codebook_loss = (2.0**15 * x[:, 0, 0, 0, 0].detach().sign()).abs()
            return x, codebook_loss, None
        one_scale = network in ("LightMUNet", "SegMamba", "VMUNet")
        return x if one_scale else [x, x[..., ::2, ::2, ::2].detach()]

    assert_near_float64(
        parser.get_parsed_content("loss"), logits.to(dtype), target, False, of_training
    )
