import numpy as np
import torch
from monai.data import MetaTensor

from common.transforms import MergeMasksd, NestedLabelsd, NestedRegionsd


def test_masks_are_merged():
    left, right = np.zeros((2, 4, 5), np.float32)
    left[1, 1], right[2, 3], right[1, 1] = 255, 1, 255
    masks = torch.from_numpy(np.stack([left, right]))
    merged = MergeMasksd("label", 2)({"label": masks})["label"]
    assert merged.shape == (1, 4, 5)
    assert merged.dtype == torch.float32
    assert merged.unique().tolist() == [0, 1]
    assert merged.nonzero().tolist() == [[0, 1, 1], [0, 2, 3]]
    assert MergeMasksd("label", 3)({"label": masks})["label"] is masks


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
