import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from ignite.engine import Engine

from common.errors import InputError
from common.evaluation import (
    MeanDice,
    MeanIoUHandler,
    MetricsSaver,
    OverlapMetric,
    PerClassMetric,
    measure,
)

from .masks import Mask, pairs


def test_scalars_per_class():
    batches = [
        [(torch.tensor([[1, 0, 1, 0]]), torch.tensor([[1, 0, 2, 2]]))],
        [(torch.tensor([[0, 2, 2, 2]]), torch.tensor([[0, 2, 2, 2]]))],
    ]

    def one_hot(classes: torch.Tensor) -> torch.Tensor:
        return torch.stack([(classes == c).float()[0] for c in range(3)])

    def pair(batch):
        return [one_hot(p) for p, _ in batch], [one_hot(y) for _, y in batch]

    engine = Engine(lambda _, batch: pair(batch))
    engine.state.metric_details = {}
    metric = PerClassMetric(OverlapMetric("dice", include_background=False), lambda x: x)
    metric.attach(engine, "dice")
    metrics = engine.run(batches).metrics
    # class 1: 2/3, and in neither mask of the second case; class 2: 0 and 1
    assert metrics.keys() == {"dice_class_1", "dice_class_2"}
    torch.testing.assert_close(metrics["dice_class_1"], 2 / 3)
    torch.testing.assert_close(metrics["dice_class_2"], 0.5)
    assert engine.state.metric_details["dice"].shape == (2, 2)


def test_a_class_without_a_case_has_no_value():
    """MONAI's mean of no value is 0, which is the best of distances and the worst of Dices."""
    engine = Engine(lambda _, batch: batch)
    engine.state.metric_details = {}
    PerClassMetric(OverlapMetric("dice"), lambda x: x).attach(engine, "dice")
    label = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    metrics = engine.run([([label], [label])]).metrics
    assert metrics["dice_class_1"] == 1
    assert math.isnan(metrics["dice_class_2"])


def test_tables_name_classes_as_the_metrics_do(tmp_path: Path):
    """MONAI's call the first class after the background class0."""
    engine = Engine(lambda _, batch: batch["pair"])
    engine.state.metric_details = {}
    PerClassMetric(OverlapMetric("dice"), lambda x: x).attach(engine, "dice")
    MeanDice(output_transform=lambda x: x).attach(engine, "mean")
    MetricsSaver(
        str(tmp_path), "*", "*", lambda batch: [batch["meta"]], summary_ops=["mean", "notnans"]
    ).attach(engine)
    label = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    batch = {"pair": ([label], [label]), "meta": {"filename_or_obj": "a.nii"}}
    engine.run([batch, batch])
    assert (tmp_path / "dice_raw.csv").read_text().splitlines() == [
        *("filename,class_1,class_2,mean", "a.nii,1.0,nan,1.0", "a.nii,1.0,nan,1.0")
    ]
    assert (tmp_path / "dice_summary.csv").read_text().splitlines()[1] == "class_1,1.0000,2.0000"
    assert (tmp_path / "mean_raw.csv").read_text().startswith("filename,class0,class1,mean")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        *("dice_class_1,1.0", "dice_class_2,nan", "mean,1.0")
    ]


@settings(max_examples=40, deadline=None)
@given(masks=pairs(), others=pairs())
def test_overlap_as_an_evaluation_of_files_has_it(
    masks: tuple[Mask, Mask, list[float]], others: tuple[Mask, Mask, list[float]]
):
    """Of lists of channels, as evaluators give them, and of batches."""
    for metric in ("dice", "iou", "voe", "rvd", "rvd_abs", "precision", "recall", "f2"):
        ours = OverlapMetric(metric)
        for prediction, label, _ in (masks, others):
            channels = [torch.from_numpy(np.stack([x, ~x])) for x in (prediction, label)]
            ours([channels[0]], [channels[1]])
            ours(channels[0].float()[None], channels[1].float()[None])
        found = torch.as_tensor(ours.get_buffer())
        wanted = [
            [measure(*pair, None).values[metric] for pair in ((p, y), (~p, ~y))]
            for p, y, _ in (masks, masks, others, others)
        ]
        torch.testing.assert_close(found, torch.tensor(wanted), equal_nan=True)
        torch.testing.assert_close(ours.aggregate(), found.nanmean(0), equal_nan=True)


def test_counts_are_exact_above_2_to_the_24():
    """In float32, 2**24 + 1 voxels are 2**24."""
    label = torch.ones(1, 1, 2**24 + 1, dtype=torch.uint8)
    prediction = label.clone()
    prediction[..., :1] = 0
    metric = OverlapMetric("rvd_abs")
    metric(prediction, label)
    assert float(metric.aggregate()) == pytest.approx(1 / (2**24 + 1), rel=1e-6)


def test_the_background_is_left_out():
    label = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    metric = OverlapMetric("recall", include_background=False)
    metric([label.flip(0)], [label])
    assert metric.aggregate().tolist() == [0]
    with pytest.raises(InputError, match="metric is 'Dice'; allowed are 'dice', 'iou'"):
        OverlapMetric("Dice")


@pytest.mark.parametrize("make", [MeanDice, MeanIoUHandler])
def test_the_mean_of_nothing_is_not_0(make: type):
    """Without a class in any label there is no mean, whatever was predicted."""
    empty, full = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    half = full.clone()
    half[..., 2:] = 0

    def mean(*cases: tuple[torch.Tensor, torch.Tensor]) -> float:
        engine = Engine(lambda engine, batch: batch)
        make(include_background=False).attach(engine, "mean")
        return engine.run(list(cases)).metrics["mean"]

    assert math.isnan(mean((full, empty), (empty, empty)))
    overlap = {MeanDice: 2 / 3, MeanIoUHandler: 1 / 2}[make]
    assert mean((empty, empty), (half, full)) == pytest.approx(overlap)
    # nnU-Net's rule: what the prediction alone has counts as 0
    assert mean((full, empty), (half, full)) == pytest.approx(overlap / 2)


def test_a_dice_of_nothing_is_said(caplog: pytest.LogCaptureFixture):
    engine = Engine(lambda engine, batch: batch)
    MeanDice(include_background=False, output_transform=lambda x: x).attach(engine, "val_mean_dice")
    nothing = torch.zeros(1, 2, 4, 4)
    with caplog.at_level(logging.WARNING):
        engine.run([(nothing, nothing)])
    assert "val_mean_dice is no number" in caplog.text
