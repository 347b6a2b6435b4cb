"""Metrics for the bundles' evaluators.

A case without a value, such as the Dice of a class that its label lacks, has NaN, which means leave
out: of every mean over cases or classes, whatever was predicted there. A mean of nothing is NaN.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai import handlers
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, write_metrics_reports
from monai.metrics import (
    ConfusionMatrixMetric,
    CumulativeIterationMetric,
    HausdorffDistanceMetric,
    MeanIoU,
    SurfaceDistanceMetric,
    compute_confusion_matrix_metric,
)
from monai.metrics.f_beta_score import compute_f_beta_score, get_f_beta_score
from monai.utils import string_list_all_gather
from torch import Tensor

_logger = logging.getLogger(__name__)


class _NothingIsNaN(IgniteMetricHandler):
    """A mean over what has a value; NaN where nothing has, of which MONAI's own would be 0."""

    def compute(self) -> Any:
        mean = super().compute()
        values = torch.as_tensor(self.metric_fn.get_buffer())
        return math.nan if values.isnan().all() else mean


class MeanDice(_NothingIsNaN, handlers.MeanDice):
    """MONAI's handler ``MeanDice``: the mean over cases of the mean over classes in the label.

    Without any class in any label it is NaN, by which no weights are the best; the log says so.
    """

    def completed(self, engine: Engine, name: str) -> None:
        super().completed(engine, name)
        if math.isnan(engine.state.metrics[name]):
            _logger.warning(
                "No label has a class of the foreground: %s is no number, and no weights are the "
                "best by it. Needed is a split whose cases have some.",
                name,
            )


class MeanIoUHandler(_NothingIsNaN, handlers.MeanIoUHandler):
    """MONAI's handler ``MeanIoUHandler``, in the same way as `MeanDice`."""


class PerClassMetric(IgniteMetricHandler):
    """A MONAI metric's mean over cases for every class, as scalars ``<name>_class_<index>``.

    Scalars, unlike a vector, reach every logger: console, TensorBoard, MLflow. A class for which no
    case has a value has NaN, where MONAI's own mean would be 0: the best of distances.

    Args:
        metric_fn: a metric of ``monai.metrics`` with ``reduction="mean_batch"``.
        output_transform: from the engine's output to (prediction, label), as for MONAI's handlers.
        first_class: index of the metric's first class; 1 where the background is left out.
    """

    def __init__(
        self,
        metric_fn: CumulativeIterationMetric,
        output_transform: Callable,
        first_class: int = 1,
    ) -> None:
        super().__init__(metric_fn=metric_fn, output_transform=output_transform)
        self.first_class = first_class

    def completed(self, engine: Engine, name: str) -> None:
        self.compute()  # gathers the cases of all processes, and keeps them as details
        values = torch.as_tensor(self.metric_fn.get_buffer()).nanmean(0).tolist()
        engine.state.metrics |= {
            f"{name}_class_{index}": value
            for index, value in enumerate(values, start=self.first_class)
        }


class MetricsSaver(handlers.MetricsSaver):
    """MONAI's handler ``MetricsSaver``, whose tables name classes as `PerClassMetric` names them.

    MONAI's call the first class of a metric class0, be it the background's or not.
    """

    def __call__(self, engine: Engine) -> None:
        parallel = idist.get_world_size() > 1
        files = string_list_all_gather(self._filenames) if parallel else self._filenames
        if idist.get_rank() != self.save_rank:
            return
        wanted, found = self.metrics or (), engine.state.metrics
        metrics = {name: x for name, x in found.items() if "*" in wanted or name in wanted}
        write_metrics_reports(self.save_dir, files, metrics, None, None, self.deli)
        wanted = self.metric_details or ()
        for name, details in engine.state.metric_details.items():
            if "*" in wanted or name in wanted:
                labels = [
                    m.removeprefix(f"{name}_") for m in found if m.startswith(f"{name}_class_")
                ]
                write_metrics_reports(
                    *(self.save_dir, files, None, {name: details}, self.summary_ops, self.deli),
                    class_labels=labels or None,
                )


class VolumeOverlapError(MeanIoU):
    """VOE, 1 - IoU of each channel; NaN where the label is empty."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        return 1 - super()._compute_tensor(y_pred, y)


class RelativeVolumeDifference(CumulativeIterationMetric):
    """RVD, (prediction - label) / label of each channel's volume; NaN where the label is empty.

    It has a sign, so that a mean over cases shows a bias: below 0, predictions are too small. Of
    cases that are too large and too small that mean may be 0; papers' tables have the mean of
    absolute values (RAVD).

    Args:
        absolute: |RVD|.
    """

    def __init__(self, absolute: bool = False) -> None:
        super().__init__()
        self.absolute = absolute

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        predicted, true = (x.flatten(2).double().sum(-1) for x in (y_pred, y))
        difference = torch.where(true > 0, (predicted - true) / true, torch.nan)
        return difference.abs() if self.absolute else difference

    def aggregate(self) -> Tensor:
        return torch.as_tensor(self.get_buffer()).nanmean(0)


class ConfusionRate(ConfusionMatrixMetric):
    """A rate of MONAI's ``ConfusionMatrixMetric`` for each case and channel, such as "precision".

    MONAI's keeps counts, of which it makes the rate last; `PerClassMetric` and a table of cases
    want each case's. NaN where the rate is 0 / 0: recall of a class that the label lacks, precision
    of one that the prediction lacks.
    """

    def __init__(self, metric_name: str, include_background: bool = True) -> None:
        super().__init__(include_background, metric_name)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        counts = super()._compute_tensor(y_pred, y)
        return compute_confusion_matrix_metric(self.metric_name[0], counts)

    def aggregate(self) -> Tensor:
        return torch.as_tensor(self.get_buffer()).nanmean(0)


class FBetaScore(CumulativeIterationMetric):
    """F-beta for each case and channel: recall counts beta times as much as precision.

    MONAI's of this name makes one score of the cases' mean counts, in which large organs outweigh
    small ones. NaN where the label is empty, as of Dice, which is F1.

    Args:
        beta: above 0.
        include_background: False leaves out the first channel.

    Raises:
        ValueError: beta is not above 0.
    """

    def __init__(self, beta: float = 1.0, include_background: bool = True) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta is {beta}; allowed are numbers above 0.")
        self.beta = beta
        self.include_background = include_background

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        counts = get_f_beta_score(y_pred, y, self.include_background)
        true_positives, _, _, false_negatives = counts.unbind(-1)
        score = compute_f_beta_score(counts, self.beta)
        return torch.where(true_positives + false_negatives > 0, score, torch.nan)

    def aggregate(self) -> Tensor:
        return torch.as_tensor(self.get_buffer()).nanmean(0)


class _Millimetres:
    """Distances in mm, by the spacing of each label; NaN where it or the prediction is empty."""

    def _compute_tensor(self, y_pred: Tensor, y: MetaTensor) -> Tensor:
        distances = super()._compute_tensor(y_pred, y, spacing=y.pixdim.tolist())  # type: ignore[misc]
        return torch.where(distances.isfinite(), distances, torch.nan)


class SurfaceDistanceInMM(_Millimetres, SurfaceDistanceMetric):
    """MONAI's ``SurfaceDistanceMetric``, in mm; labels are MetaTensors.

    NaN where label or prediction is empty: a missed tumour leaves the mean unchanged, so read it
    beside the Dice.
    """


class HausdorffDistanceInMM(_Millimetres, HausdorffDistanceMetric):
    """MONAI's ``HausdorffDistanceMetric``, in mm; labels and NaN as in `SurfaceDistanceInMM`."""
