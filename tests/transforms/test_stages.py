import pytest
import torch
from monai.transforms import CropForegroundd

from common.errors import InputError
from common.transforms import ForegroundOrAll, StageLabeld


def test_region_of_each_stage():
    label = torch.tensor([[0.0, 1.0, 2.0]])
    for stage, region in (("liver", [0.0, 1.0, 1.0]), ("tumor", [0.0, 0.0, 1.0])):
        assert StageLabeld("label", stage)({"label": label})["label"].tolist() == [region]
    with pytest.raises(InputError, match="'lung'; allowed are 'liver' and 'tumor'"):
        StageLabeld("label", "lung")


@pytest.mark.parametrize(("inside", "size"), [(slice(2, 5), (1, 3, 3)), (slice(0, 0), (1, 8, 8))])
def test_crop_to_the_foreground_where_there_is_some(inside: slice, size: tuple[int, ...]):
    label = torch.zeros(1, 8, 8)
    label[:, inside, inside] = 2
    crop = CropForegroundd(["label"], "label", select_fn=ForegroundOrAll())
    assert crop({"label": label})["label"].shape == size
