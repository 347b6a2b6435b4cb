"""How far two masks overlap, from their counts of voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from monai.metrics import compute_confusion_matrix_metric
from monai.metrics.f_beta_score import compute_f_beta_score
from torch import Tensor


def confusion(prediction: Tensor, label: Tensor) -> Tensor:
    """Voxels that are true positive, false positive, true negative and false negative.

    MONAI's `get_confusion_matrix` counts in float32, which is exact to 2**24, and makes float32
    copies of what it counts.

    Args:
        prediction, label: masks of one shape, of bool.

    Returns:
        Four counts, float64, on the CPU.
    """
    both, found, true = (
        int(torch.count_nonzero(mask)) for mask in (prediction & label, prediction, label)
    )
    neither = prediction.numel() - found - true + both
    return torch.tensor([both, found - both, neither, true - both], dtype=torch.float64)


def _volume_difference(counts: Tensor) -> Tensor:
    true_positives, false_positives, _, false_negatives = counts.unbind(-1)
    true = true_positives + false_negatives
    return torch.where(true > 0, (false_positives - false_negatives) / true, torch.nan)


_DICE = partial(compute_confusion_matrix_metric, "f1 score")
_IOU = partial(compute_confusion_matrix_metric, "threat score")

# Of counts (..., 4), see `confusion`; NaN where it is 0 / 0. So Dice, IoU, VOE and F2 have no value
# where neither mask has a voxel, and are the worst where one alone has some; recall and RVD have
# none where the label is empty, precision none where the prediction is.
OVERLAP: Mapping[str, Callable[[Tensor], Tensor]] = {
    "dice": _DICE,
    "iou": _IOU,
    "voe": lambda counts: 1 - _IOU(counts),
    "rvd": _volume_difference,
    "rvd_abs": lambda counts: _volume_difference(counts).abs(),
    "precision": partial(compute_confusion_matrix_metric, "precision"),
    "recall": partial(compute_confusion_matrix_metric, "recall"),
    "f2": partial(compute_f_beta_score, beta=2.0),
}
