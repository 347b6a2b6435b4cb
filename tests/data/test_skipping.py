from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from common.data import SkippingDataLoader, SkippingDataset
from common.errors import InputError, input_error_in


class Load:
    """Of a number above 0 an image; others are the user's to mend, and None is ours."""

    def __call__(self, item: dict) -> dict:
        if item["image"] is None:
            raise KeyError("a fault of ours")
        if item["image"] < 0:
            raise InputError(f"{item['image']} cannot be read; allowed are numbers from 0.")
        return {"image": torch.full((1, 2, 2), float(item["image"]))}


def loader(numbers: list, **kwargs) -> SkippingDataLoader:
    data = [{"image": number} for number in numbers]
    return SkippingDataLoader(SkippingDataset(data, Load()), **kwargs)


def seen(data_loader: SkippingDataLoader) -> list[float]:
    found: list[float] = []

    class Network(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found.extend(x[:, 0, 0, 0].tolist())
            return x

    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data_loader,
        network=Network(),
        val_handlers=[data_loader],
    ).run()
    return found


@pytest.mark.parametrize("kwargs", [{}, {"batch_size": 2}, {"num_workers": 2}], ids=str)
@pytest.mark.parametrize("numbers", [[-1, 0, 1, -2, 2], [3, -1], [1, 2]], ids=str)
def test_the_others_are_done_once_each(numbers: list[int], kwargs: dict):
    data_loader = loader(numbers, **kwargs)
    assert seen(data_loader) == [n for n in numbers if n >= 0]
    failed = [n for n in numbers if n < 0]
    if not failed:
        return data_loader.check()
    with pytest.raises(InputError) as raised:
        data_loader.check()
    assert f"{len(failed)} of {len(numbers)} images were left out" in str(raised.value)
    for number in failed:
        assert f"{number} cannot be read" in str(raised.value)


def test_nothing_can_be_read():
    data_loader = loader([-n for n in range(1, 30)])
    assert seen(data_loader) == []
    with pytest.raises(InputError, match=r"29 of 29 .*-20 cannot.* and 9 more"):
        data_loader.check()


def test_strict_ends_at_the_first():
    data_loader = SkippingDataLoader(SkippingDataset([{"image": -1}], Load(), strict=True))
    with pytest.raises(RuntimeError) as raised:
        list(data_loader)
    assert input_error_in(raised.value) == "-1 cannot be read; allowed are numbers from 0."


def test_other_errors_are_not_hidden():
    with pytest.raises(RuntimeError, match="applying transform"):
        list(loader([0, None]))


def test_strict_is_true_or_false():
    with pytest.raises(InputError, match="strict is 'no'; allowed are True and False"):
        SkippingDataset([], strict="no")  # type: ignore[arg-type]
