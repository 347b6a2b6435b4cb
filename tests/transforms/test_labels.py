from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric, HausdorffDistanceMetric
from monai.transforms import AsDiscreted, Compose

from common.data.label_values import LabelValues, count_values
from common.errors import InputError
from common.ignored import IGNORED
from common.transforms import (
    ClassLogitsd,
    LabelRegionsd,
    LeaveOutIgnoredd,
    MergeMasksd,
    NestedLabelsd,
    NestedRegionsd,
    RegionLabelsd,
    region_values,
)

from .conftest import check, scan, write


def test_masks_are_merged():
    left, right = np.zeros((2, 4, 5), np.float32)
    left[1, 1], right[2, 3], right[1, 1] = 255, 1, 255
    masks = torch.from_numpy(np.stack([left, right]))
    merged = MergeMasksd("label", 2)({"label": masks})["label"]
    assert merged.shape == (1, 4, 5)
    assert merged.dtype == torch.float32
    assert merged.unique().tolist() == [0, 1]
    assert merged.nonzero().tolist() == [[0, 1, 1], [0, 2, 3]]
    for other in (MergeMasksd("label", 3), MergeMasksd("label", 2, {0: 0, 9: 1})):
        assert other({"label": masks})["label"] is masks


def test_nested_regions_and_back():
    label = MetaTensor(torch.tensor([[0.0, 1, 2, 0]]), meta={"filename_or_obj": "a"})
    regions = NestedRegionsd("label", num_classes=3)({"label": label})["label"]
    assert regions.meta["filename_or_obj"] == "a"
    assert regions.tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]
    assert NestedLabelsd("label")({"label": regions})["label"].tolist() == label.tolist()
    # A tumour outside the liver is none, however certain.
    probabilities = torch.tensor([[0.4, 0.6, 0.6, 0.5], [0.9, 0.1, 0.6, 0.6]])
    labels = NestedLabelsd("pred")({"pred": probabilities})["pred"]
    assert labels.tolist() == [[0, 1, 2, 0]]


def labelled(folder: Path, *values: float, **labels: object) -> torch.Tensor:
    """What becomes of a label's values."""
    image = write(folder / "image.nii.gz", scan((len(values), 2, 2)))
    label = np.zeros((len(values), 2, 2), np.float32)
    label[:] = np.array(values)[:, None, None]
    return check(image, write(folder / "label.nii.gz", label), **labels)["label"][0, :, 0, 0]


def test_regions_that_are_not_clipped():
    """A tumour outside the liver is there: without it nobody sees what keeps it inside."""
    probabilities = torch.tensor([[0.9, 0.2, 0.6, 0.5], [0.1, 0.8, 0.7, 0.9]])
    masks = NestedLabelsd("pred", clip=False)({"pred": probabilities})["pred"]
    assert masks.tolist() == [[1, 0, 1, 0], [0, 1, 1, 1]]
    assert masks.dtype == torch.uint8


def test_one_channel_is_a_sigmoids():
    logits = MetaTensor(torch.randn(1, 4, 5), meta={"filename_or_obj": "a"})
    both = ClassLogitsd("pred", 2)({"pred": logits})["pred"]
    torch.testing.assert_close(both.softmax(0)[1:].as_tensor(), logits.sigmoid().as_tensor())
    assert both.meta["filename_or_obj"] == "a"
    assert ClassLogitsd("pred", 2)({"pred": both})["pred"] is both
    for channels, classes, said in ((1, 3, "1 channel and"), (3, 2, "3 channels and")):
        with pytest.raises(InputError, match=f"output has {said} num_classes is {classes}; allow"):
            ClassLogitsd("pred", classes)({"pred": torch.zeros(channels, 4, 5)})


def test_rounding_of_floats(tmp_path: Path):
    assert labelled(tmp_path, 0, 0.99999, 1.9995, -0.0005).tolist() == [0, 1, 2, 0]
    message = sentence_of(tmp_path, 0, 0.998, np.nan)
    assert "label.nii.gz has the values 0.998, nan; allowed are whole numbers" in message


def sentence_of(folder: Path, *values: float, **labels: object) -> str:
    with pytest.raises(RuntimeError) as raised:
        labelled(folder, *values, **labels)
    assert isinstance(raised.value.__cause__, InputError)
    return str(raised.value.__cause__)


@pytest.mark.parametrize("text", [False, True], ids=["numbers", "JSON"])
def test_values_are_renamed_merged_and_left_out(tmp_path: Path, text: bool):
    label_map: dict = {0: 0, 2: 1, 5: 2, 7: 0, 1: 2}
    if text:
        label_map = {str(old): new for old, new in label_map.items()}
    done = labelled(tmp_path, 0, 2, 5.0001, 7, 1, label_map=label_map)
    assert done.tolist() == [0, 1, 2, 0, 2]
    message = sentence_of(tmp_path, 0, 2, 3, 4, label_map=label_map)
    assert "label.nii.gz has the values 3, 4; allowed are 0, 1, 2, 5, 7" in message


def test_ignored_voxels_are_marked(tmp_path: Path):
    assert labelled(tmp_path, 0, 1, 2, 3, ignore_label=3).tolist() == [0, 1, 2, IGNORED]
    only = labelled(tmp_path, 0, 1, 4, num_classes=2, label_map={0: 0, 4: 1}, ignore_label=1)
    assert only.tolist() == [0, IGNORED, 1]
    message = sentence_of(tmp_path, 0, 4, ignore_label=3)
    assert "has the values 4; allowed are the classes 0 to 2" in message
    assert "its ignore_label 3" in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1,), "num_classes is 1; allowed are numbers from 2"),
        ((3, {0: 0, 1: 1}), "with the classes 0, 1; allowed are 0 to 2"),
        ((2, {0: 0, 1: 2}), "with the classes 0, 2; allowed are 0 to 1"),
        ((2, {"liver": 1, 0: 0}), "a key of label_map is 'liver'; allowed are whole numbers"),
        ((2, [0, 1]), "label_map is [0, 1]; allowed is {value: class, ...}"),
        ((3, None, 2), "ignore_label is 2, which stands for a class as well"),
        ((2, {0: 0, 5: 1}, 5), "ignore_label is 5, which stands for a class as well"),
    ],
)
def test_arguments_that_cannot_be(arguments: tuple, expected: str):
    with pytest.raises(InputError) as raised:
        LabelValues(*arguments)
    assert expected in str(raised.value)


def test_values_are_counted():
    label = torch.tensor([[0, 2, 2, 70000.0, -1]])
    assert count_values(label) == {-1: 1, 0: 1, 2: 2, 70000: 1}
    assert count_values(label[:, :3]) == {0: 1, 2: 2}
    assert count_values(torch.tensor([0.25, 1])) == {0.25: 1, 1: 1}


BRATS = [[1, 2, 3], [1, 3], [3]]


def test_regions_and_back():
    label = MetaTensor(torch.tensor([[0.0, 1, 2, 3, IGNORED]]), meta={"filename_or_obj": "a"})
    regions = LabelRegionsd("label", BRATS)({"label": label})["label"]
    assert regions.meta["filename_or_obj"] == "a"
    assert regions.tolist() == [[0, 1, 1, 1, -1], [0, 1, 0, 1, -1], [0, 0, 0, 1, -1]]
    assert region_values(BRATS) == [2, 1, 3]
    assert RegionLabelsd("pred", BRATS)({"pred": regions})["pred"].tolist() == [[0, 1, 2, 3, 0]]
    # Regions are painted in their order, as nnU-Net does: the last one wins, nothing is nested.
    probabilities = torch.tensor([[0.4, 0.9, 0.9], [0.2, 0.1, 0.6], [0.8, 0.1, 0.1]])
    assert RegionLabelsd("p", BRATS)({"p": probabilities})["p"].tolist() == [[3, 2, 1]]


@pytest.mark.parametrize(
    ("regions", "expected"),
    [([[3], [1, 3]], "lies within later ones"), ([[0, 1]], "from 1"), ([[]], "one or more")],
)
def test_regions_that_cannot_be(regions: list, expected: str):
    for make in (LabelRegionsd, RegionLabelsd):
        with pytest.raises(InputError, match=expected):
            make("label", regions)


def test_nested_regions_keep_what_is_ignored():
    label = torch.tensor([[0.0, 1, 2, IGNORED]])
    regions = NestedRegionsd("label", num_classes=3)({"label": label})["label"]
    assert regions.tolist() == [[0, 1, 1, -1], [0, 0, 1, -1]]
    bytes_ = NestedRegionsd("p", num_classes=3)({"p": torch.tensor([[2]], dtype=torch.uint8)})
    assert bytes_["p"].tolist() == [[1], [1]]


def scores(pred: torch.Tensor, label: torch.Tensor, **options: bool) -> torch.Tensor:
    """Dice and HD95 of one case by MONAI."""
    pred, label = pred[None], label[None]
    dice = DiceMetric(**options)(pred, label)
    return torch.cat([dice, HausdorffDistanceMetric(percentile=95, **options)(pred, label)])


@pytest.mark.parametrize("softmax", [True, False], ids=["softmax", "regions"])
def test_metrics_do_not_see_ignored_voxels(softmax: bool):
    torch.manual_seed(0)
    label = torch.randint(3, (1, 8, 8, 8)).float()
    ignored = torch.zeros(1, 8, 8, 8, dtype=torch.bool)
    ignored[..., :3] = True
    marked = label.masked_fill(ignored, IGNORED)
    if softmax:
        steps = Compose(
            [
                LeaveOutIgnoredd("pred"),
                AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3),
            ]
        )
    else:
        marked = NestedRegionsd("x", 3)({"x": marked})["x"]
        steps = Compose([AsDiscreted("pred", threshold=0.5), LeaveOutIgnoredd("pred")])
    pred = torch.rand(3 if softmax else 2, 8, 8, 8)
    other = torch.where(ignored, torch.rand_like(pred), pred)
    done = [steps({"pred": p.clone(), "label": marked.clone()}) for p in (pred, other)]
    assert {str(x.unique().tolist()) for d in done for x in d.values()} == {"[0.0, 1.0]"}
    results = [scores(d["pred"], d["label"], include_background=not softmax) for d in done]
    assert torch.equal(*results)
    # Dice is that of what remains, where it alone is given.
    whole = Compose(steps.transforms[1:] if softmax else steps.transforms[:1])(
        {"pred": pred, "label": label if softmax else NestedRegionsd("x", 3)({"x": label})["x"]}
    )
    rest = scores(whole["pred"][..., 3:], whole["label"][..., 3:], include_background=not softmax)
    torch.testing.assert_close(results[0][0], rest[0])
    nothing = {"pred": pred, "label": label}
    assert all(LeaveOutIgnoredd("pred")(nothing)[key] is nothing[key] for key in nothing)


def test_ignored_voxels_of_a_label_without_a_sign():
    label = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    values = LabelValues(2, ignore_label=255)
    assert values.problem(list(count_values(label))) is None
    assert values.apply(label).tolist() == [[0, 1, IGNORED]]
    assert count_values(torch.tensor([[True, False, True]])) == {0.0: 1, 1.0: 2}


def test_one_map_of_several_values_is_no_mask():
    label = torch.tensor([[0.0, 1.0, 2.0, 9.0]])
    assert torch.equal(MergeMasksd("label", 2)({"label": label})["label"], label)


def test_masks_that_are_no_numbers_stay_so():
    masks = torch.tensor([[0.0, 2.0, torch.nan], [0.0, 0.0, 0.0]])
    merged = MergeMasksd("label", 2)({"label": masks})["label"][0]
    assert merged[:2].tolist() == [0, 1]
    assert merged[2].isnan()
