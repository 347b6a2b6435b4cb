"""What each stage of a cascade is trained on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from ..errors import InputError

_STAGES = {"liver": lambda label: label > 0, "tumor": lambda label: label == 2}


class StageLabeld(MapTransform):
    """Label maps of 0, 1 liver and 2 tumour to the one region that a stage is trained on.

    Args:
        keys: keys of the label maps, (1, ...).
        stage: "liver", tumours included, or "tumor".

    Raises:
        InputError: it is another stage.
    """

    def __init__(self, keys: KeysCollection, stage: str) -> None:
        super().__init__(keys)
        if stage not in _STAGES:
            allowed = " and ".join(map(repr, _STAGES))
            raise InputError(f"stage is {stage!r}; allowed are {allowed}.")
        self.stage = stage

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        split = dict(data)
        for key in self.key_iterator(split):
            split[key] = _STAGES[self.stage](split[key]).to(split[key].dtype)
        return split


class ForegroundOrAll:
    """For `CropForegroundd`: the foreground; of a label map without any, the whole."""

    def __call__(self, label: Tensor) -> Tensor:
        return (label > 0) | ~(label > 0).any()
