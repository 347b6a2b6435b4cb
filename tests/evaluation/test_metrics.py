import logging
import math
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.metrics import DiceMetric

from common.evaluation import (
    ConfusionRate,
    FBetaScore,
    HausdorffDistanceInMM,
    MeanDice,
    MeanIoUHandler,
    MetricsSaver,
    PerClassMetric,
    RelativeVolumeDifference,
    SurfaceDistanceInMM,
    VolumeOverlapError,
)


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
    metric = PerClassMetric(
        DiceMetric(include_background=False, reduction="mean_batch"), lambda x: x
    )
    metric.attach(engine, "dice")
    metrics = engine.run(batches).metrics
    # class 1: 2/3, and absent from the second case; class 2: 0 and 1
    assert metrics.keys() == {"dice_class_1", "dice_class_2"}
    torch.testing.assert_close(metrics["dice_class_1"], 2 / 3)
    torch.testing.assert_close(metrics["dice_class_2"], 0.5)
    assert engine.state.metric_details["dice"].shape == (2, 2)


def test_a_class_without_a_case_has_no_value():
    """MONAI's mean of no value is 0, which is the best of distances and the worst of Dices."""
    engine = Engine(lambda _, batch: batch)
    engine.state.metric_details = {}
    PerClassMetric(DiceMetric(reduction="mean_batch"), lambda x: x).attach(engine, "dice")
    label = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    metrics = engine.run([([label], [label])]).metrics
    assert metrics["dice_class_1"] == 1
    assert math.isnan(metrics["dice_class_2"])


def test_tables_name_classes_as_the_metrics_do(tmp_path: Path):
    """MONAI's call the first class after the background class0."""
    engine = Engine(lambda _, batch: batch["pair"])
    engine.state.metric_details = {}
    PerClassMetric(DiceMetric(reduction="mean_batch"), lambda x: x).attach(engine, "dice")
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


def masks(*slices: slice | None) -> MetaTensor:
    """A channel for each slice along the last axis, of slices 3 mm apart."""
    channels = torch.zeros(len(slices), 8, 8, 8)
    for channel, part in zip(channels, slices, strict=True):
        if part is not None:
            channel[2:6, 2:6, part] = 1
    return MetaTensor(channels, affine=torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0])))


LABEL = masks(slice(2, 6), slice(2, 3), slice(2, 4), None)
PREDICTION = masks(slice(2, 7), slice(4, 5), None, slice(2, 4))


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (VolumeOverlapError(), [1 / 5, 1, 1, math.nan]),
        (RelativeVolumeDifference(), [1 / 4, 0, -1, math.nan]),
        (RelativeVolumeDifference(absolute=True), [1 / 4, 0, 1, math.nan]),
        # Two plates, 2 slices of 3 mm apart; between them nothing else.
        (SurfaceDistanceInMM(include_background=True, symmetric=True), [None, 6, math.nan]),
        (HausdorffDistanceInMM(include_background=True, percentile=95), [3, 6, math.nan, math.nan]),
    ],
    ids=["VOE", "RVD", "|RVD|", "ASD", "HD95"],
)
@pytest.mark.filterwarnings("ignore:the (prediction|ground truth) of class")
def test_the_challenges_metrics(metric, expected: list[float | None]):
    metric([PREDICTION], [LABEL])
    found = torch.as_tensor(metric.get_buffer())[0].tolist()
    for value, wanted in zip(found, expected, strict=False):
        if wanted is not None:
            assert value == pytest.approx(wanted, nan_ok=True)
    assert 0 <= found[0] <= 3


def test_distances_of_each_case_are_in_its_own_millimetres():
    coarse = MetaTensor(LABEL.as_tensor()[1:2], affine=torch.diag(torch.tensor([1.0, 1, 5, 1])))
    metric = SurfaceDistanceInMM(include_background=True, symmetric=True)
    metric([PREDICTION[1:2], PREDICTION[1:2]], [LABEL[1:2], coarse])
    assert torch.as_tensor(metric.get_buffer()).flatten().tolist() == [6, 10]


def test_rates_of_each_case():
    """Means are of the cases' rates, not a rate of summed counts, and scalars reach the log."""
    label = torch.zeros(3, 4, 4)
    label[0, :2] = 1
    label[1, 0] = 1
    prediction = torch.zeros(3, 4, 4)
    prediction[0] = 1
    prediction[2, 0] = 1
    other = torch.zeros(3, 4, 4)
    other[0, 0] = 1
    expected = {
        "precision": ([0.5, math.nan, 0.0], [1.0, math.nan, math.nan], [0.75, math.nan, 0.0]),
        "recall": ([1.0, 0.0, math.nan], [0.5, 0.0, math.nan], [0.75, 0.0, math.nan]),
    }
    for name, (*cases, mean) in expected.items():
        engine = Engine(lambda _, batch: batch)
        engine.state.metric_details = {}
        PerClassMetric(ConfusionRate(name), lambda x: x).attach(engine, name)
        metrics = engine.run([([prediction], [label]), ([other], [label])]).metrics
        assert [metrics[f"{name}_class_{i}"] for i in (1, 2, 3)] == pytest.approx(mean, nan_ok=True)
        assert engine.state.metric_details[name].tolist() == [
            pytest.approx(case, nan_ok=True) for case in cases
        ]


def test_f2_of_each_case():
    """5 TP / (5 TP + 4 FN + FP) of a case and class, then the mean over cases."""
    label, some, none = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    label[1], some[1, 0], some[2, 0] = 1, 1, 1
    metric = FBetaScore(beta=2, include_background=False)
    metric([some, none, label], [label] * 3)
    found = torch.as_tensor(metric.get_buffer())
    assert found[:, 0].tolist() == pytest.approx([20 / (20 + 4 * 12), 0, 1])
    assert found[:, 1].isnan().all()  # no label has it, whatever is predicted
    assert metric.aggregate().tolist() == pytest.approx([(20 / 68 + 1) / 3, math.nan], nan_ok=True)
    dice = DiceMetric(include_background=False, reduction="none")
    dice([some], [label])
    f1 = FBetaScore(include_background=False)
    f1([some], [label])
    torch.testing.assert_close(f1.get_buffer(), dice.get_buffer(), equal_nan=True)
    with pytest.raises(ValueError, match="beta is 0; allowed are numbers above 0"):
        FBetaScore(beta=0)


@pytest.mark.parametrize("make", [MeanDice, MeanIoUHandler])
def test_the_mean_of_nothing_is_not_0(make: type):
    """Cases without a class are left out of its mean, whatever was predicted there."""
    empty, full = torch.zeros(1, 2, 4), torch.ones(1, 2, 4)
    half = full.clone()
    half[..., 2:] = 0

    def mean(*cases: tuple[torch.Tensor, torch.Tensor]) -> float:
        engine = Engine(lambda engine, batch: batch)
        make(include_background=False).attach(engine, "mean")
        return engine.run(list(cases)).metrics["mean"]

    assert math.isnan(mean((full, empty), (empty, empty)))
    expected = {MeanDice: 2 / 3, MeanIoUHandler: 1 / 2}[make]
    assert mean((full, empty), (half, full)) == pytest.approx(expected)


def test_a_dice_of_nothing_is_said(caplog: pytest.LogCaptureFixture):
    engine = Engine(lambda engine, batch: batch)
    MeanDice(include_background=False, output_transform=lambda x: x).attach(engine, "val_mean_dice")
    nothing = torch.zeros(1, 2, 4, 4)
    with caplog.at_level(logging.WARNING):
        engine.run([(nothing, nothing)])
    assert "val_mean_dice is no number" in caplog.text
