"""Connected components: of masks by faces, of label maps as MONAI has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import KeepLargestConnectedComponent

from common.components import largest_component
from common.errors import InputError
from common.transforms import KeepLargestComponentsd


def test_largest_component():
    mask = np.zeros((5, 5, 5), np.bool_)
    assert not largest_component(mask).any()
    mask[0, 0, :2] = mask[1, 1, 2:5] = True  # edges touch, faces do not
    assert largest_component(mask).nonzero()[2].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("of", "theirs"),
    [
        (True, {"independent": False}),
        ("per_class", {"independent": True}),
        ([1, 3], {"independent": True, "applied_labels": [1, 3]}),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_largest_components_of_classes(of: Any, theirs: dict[str, Any], number: int):
    torch.manual_seed(0)
    label = torch.randint(0, 60, (1, 12, 10, 8))
    label[label > 4] = 0  # class 4 is never looked at by itself in the list
    kept = KeepLargestComponentsd("pred", of, number)({"pred": label.to(torch.uint8)})["pred"]
    expected = KeepLargestConnectedComponent(num_components=number, **theirs)(label.clone())
    assert torch.equal(kept.long(), expected.long())
    assert not torch.equal(kept.long(), label)


@pytest.mark.parametrize("of", ["all", 2, [0], [], ["liver"]])
def test_other_choices_are_refused(of: Any):
    with pytest.raises(InputError, match=r"keep_largest_component is .*; allowed are True, False"):
        KeepLargestComponentsd("pred", of)


def test_masks_of_regions_are_no_label_map():
    """Of several channels only the first would be looked at."""
    with pytest.raises(InputError, match="is True, and pred has 2 channels; allowed is a label"):
        KeepLargestComponentsd("pred")({"pred": torch.zeros(2, 4, 4, 4)})
