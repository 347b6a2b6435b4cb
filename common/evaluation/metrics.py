"""Metrics for the bundles' evaluators.

A case without a value, such as the Dice of a class that neither its label nor the prediction has,
has NaN, which means leave out: of every mean over cases or classes. A mean of nothing is NaN.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai import handlers
from monai.data import MetaTensor
from monai.handlers import IgniteMetricHandler, write_metrics_reports
from monai.metrics import CumulativeIterationMetric
from monai.metrics.utils import ignore_background
from monai.utils import ImageMetaKey, string_list_all_gather
from torch import Tensor

from ..data.formats import format_of, name_of
from ..data.geometry import spacing_of
from ..data.layouts import told_apart
from ..data.layouts.names import without_first_channel
from ..errors import check_choice
from .cases import CaseResult, summarise, write_results
from .measures import METRICS, Measures, measure
from .overlap import OVERLAP, confusion

_logger = logging.getLogger(__name__)


class OverlapMetric(CumulativeIterationMetric):
    """A metric of `OVERLAP` for each case and channel, such as "dice".

    By nnU-Net's rule: Dice, IoU, VOE and F2 of a class that neither label nor prediction has are
    NaN, those of one that the prediction alone has are the worst, as of one that is missed. NaN is
    recall or RVD of a class that the label lacks, and precision of one that the prediction lacks.

    Args:
        metric: its name.
        include_background: False leaves out the first channel.

    Raises:
        InputError: there is no such metric.
    """

    def __init__(self, metric: str, include_background: bool = True) -> None:
        super().__init__()
        check_choice("metric", metric, OVERLAP)
        self.score = OVERLAP[metric]
        self.include_background = include_background

    def _compute_tensor(self, y_pred: Tensor, y: Tensor) -> Tensor:
        found, true = (x.detach().as_subclass(Tensor) for x in (y_pred, y))
        if not self.include_background:
            found, true = ignore_background(found, true)
        counts = [
            confusion(mask > 0, label > 0)
            for mask, label in zip(found.flatten(0, 1), true.flatten(0, 1), strict=True)
        ]
        scores = self.score(torch.stack(counts)).reshape(found.shape[:2])
        return scores.to(y_pred.device, torch.float32)

    def aggregate(self) -> Tensor:
        return torch.as_tensor(self.get_buffer()).nanmean(0)


class _MeanOverlap(IgniteMetricHandler):
    """The mean over cases of the mean over each case's classes.

    Without any class in any label it is NaN: what was predicted then says nothing of a network.
    """

    def __init__(self, metric: str, include_background: bool, output_transform: Callable) -> None:
        super().__init__(
            OverlapMetric(metric, include_background), output_transform=output_transform
        )

    def reset(self) -> None:
        super().reset()
        self.labelled = False

    def update(self, output: Sequence[Any]) -> None:
        super().update(output)
        first = 0 if self.metric_fn.include_background else 1
        self.labelled |= any(bool((label[first:] > 0).any()) for label in output[1])

    def compute(self) -> float:
        super().compute()  # gathers the cases of all processes, and keeps them as details
        if not idist.all_reduce(int(self.labelled), "MAX"):
            return math.nan
        return float(torch.as_tensor(self.metric_fn.get_buffer()).nanmean(1).nanmean())


class MeanDice(_MeanOverlap):
    """The mean over cases of the mean Dice over each case's classes; see `OverlapMetric`.

    Without any class in any label it is NaN, by which no weights are the best; the log says so.

    Args:
        include_background: False leaves out the first channel.
        output_transform: from the engine's output to (prediction, label), as for MONAI's handlers.
    """

    def __init__(
        self, include_background: bool = True, output_transform: Callable = lambda x: x
    ) -> None:
        super().__init__("dice", include_background, output_transform)

    def completed(self, engine: Engine, name: str) -> None:
        super().completed(engine, name)
        if math.isnan(engine.state.metrics[name]):
            _logger.warning(
                "No label has a class of the foreground: %s is no number, and no weights are the "
                "best by it. Needed is a split whose cases have some.",
                name,
            )


class MeanIoUHandler(_MeanOverlap):
    """The mean over cases of the mean IoU over each case's classes, in the same way as `MeanDice`.

    Args:
        include_background, output_transform: as for `MeanDice`.
    """

    def __init__(
        self, include_background: bool = True, output_transform: Callable = lambda x: x
    ) -> None:
        super().__init__("iou", include_background, output_transform)


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


class CasesSaver:
    """Handler of an evaluation: the files of `evaluate`, of the masks as they are in memory.

    Means of classes go into the evaluator's metrics too, as ``val_<metric>_class_<index>``, before
    the handlers after this one see them.

    Args:
        output_dir: a folder that there is.
        num_classes: the background among them; of prediction and label the last num_classes - 1
            channels count, be they classes or regions.
        label_names: what the classes are called, the background first; else "class 1", ....
        tolerance_mm, empty: as for `evaluate`.
    """

    def __init__(
        self,
        output_dir: str,
        num_classes: int,
        label_names: Sequence[str] | None = None,
        tolerance_mm: float = 2.0,
        empty: str = "nnunet",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.num_classes = num_classes
        self.label_names = label_names
        self.tolerance_mm = tolerance_mm
        self.empty = empty
        self._measured: list[tuple[str, bool, list[Measures]]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._measure)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._measured = []

    def _measure(self, engine: Engine) -> None:
        for item in engine.state.output:
            file = str(item["image"].meta[ImageMetaKey.FILENAME_OR_OBJ])
            found = format_of(file)
            picture = found is not None and found.spatial_dims == 2
            label: MetaTensor = item["label"]
            spacing = None if picture else spacing_of(label.affine, label.ndim - 1)
            masks = (x.as_subclass(Tensor)[1 - self.num_classes :] for x in (item["pred"], label))
            measures = [
                measure(
                    prediction.numpy(force=True) > 0,
                    true.numpy(force=True) > 0,
                    spacing,
                    self.tolerance_mm,
                    self.empty,
                )
                for prediction, true in zip(*masks, strict=True)
            ]
            self._measured.append((file, picture, measures))

    def _write(self, engine: Engine) -> None:
        parallel = idist.get_world_size() > 1
        lines = [json.dumps(one) for one in self._measured]
        lines = string_list_all_gather(lines) if parallel else lines
        measured = sorted((json.loads(line) for line in lines), key=lambda one: one[0])
        files = [file for file, _, _ in measured]
        names = told_apart([without_first_channel(name_of(file)) for file in files], files)
        channels = len(measured[0][2])
        if self.label_names is None or len(self.label_names) != channels + 1:
            classes = [f"class {i}" for i in range(1, channels + 1)]
        else:
            classes = list(self.label_names[1:])
        cases = [
            CaseResult(name, dict(zip(classes, (Measures(*x) for x in of_case), strict=True)), {})
            for name, (_, _, of_case) in zip(names, measured, strict=True)
        ]
        settings = {
            "classes": {name: [i] for i, name in enumerate(classes, start=1)},
            "empty": self.empty,
            "unit": "pixels" if measured[0][1] else "mm",
            "tolerance_mm": self.tolerance_mm,
        }
        if idist.get_rank() == 0:
            summary = write_results(self.output_dir, cases, settings)
        else:
            summary = summarise(cases, settings)
        for i, name in enumerate(classes, start=1):
            for metric in METRICS:
                mean = summary["classes"][name][metric]["mean"]
                value = math.nan if mean is None else mean
                engine.state.metrics.setdefault(f"val_{metric}_class_{i}", value)
