"""Metrics for the bundles' evaluators."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric


class PerClassMetric(IgniteMetricHandler):
    """A MONAI metric's mean over cases for every class, as scalars ``<name>_class_<index>``.

    Scalars, unlike a vector, reach every logger: console, TensorBoard, MLflow.

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
        values = torch.as_tensor(self.compute()).reshape(-1).tolist()
        engine.state.metrics |= {
            f"{name}_class_{index}": value
            for index, value in enumerate(values, start=self.first_class)
        }
