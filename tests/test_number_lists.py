"""Settings that are lists of numbers: whatever else is typed in their place gets a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from common.data import split_cases
from common.errors import InputError
from common.evaluation import draw_overlay
from common.inferers import BoundedSliceInferer, BoundedSlidingWindowInferer, CascadeInferer
from common.transforms import (
    OwnKeysSpacingd,
    RandAffinePatchesd,
    RandGammad,
    RandGaussianBlurd,
    RandLowResolutiond,
    RelativeSpacingd,
    SplineResized,
    input_size,
)

VOLUME = torch.zeros(1, 1, 6, 5, 4)


def image() -> dict[str, MetaTensor]:
    return {"image": MetaTensor(VOLUME[0])}


def in_windows(size: Any) -> None:
    BoundedSlidingWindowInferer(size)(VOLUME, nn.Identity())


# What is made of the setting, how its sentence begins, and what of the same kind is allowed.
SETTINGS: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "split": (lambda x: split_cases("none", "training", x), "The split is by", None),
    "spacing": (lambda x: OwnKeysSpacingd("image", x)(image()), "spacing is", [1, 1, 2.5]),
    "patch_size": (lambda x: input_size(x, 1, 3), "patch_size is", [8, 8, 8]),
    "patch_size of windows": (in_windows, "patch_size, of windows, is", [4, 4, 4]),
    "patch_size of slices": (BoundedSliceInferer, "patch_size, of windows, is", [4, 4]),
    "image_size": (
        lambda x: SplineResized("image", x, mode="nearest")(image()),
        "The size of images is",
        [4, 4, 4],
    ),
    "margin": (lambda x: CascadeInferer(None, x), "margin is", [8, 8, 4]),  # type: ignore[arg-type]
    "in_plane_factor": (lambda x: RelativeSpacingd("image", x, None), "in_plane_factor is", 0.5),
    "scale_range": (
        lambda x: RandAffinePatchesd("image", (8, 8), 2, scale_range=x),
        "scale_range is",
        [0.7, 1.4],
    ),
    "sigma": (lambda x: RandGaussianBlurd("image", x), "sigma is", [0.5, 1.0]),
    "zoom_range": (lambda x: RandLowResolutiond("image", x), "zoom_range is", [0.5, 1]),
    "gamma": (lambda x: RandGammad("image", x), "gamma is", [0.7, 1.5]),
    "window": (lambda x: draw_overlay("a.nii", "b.nii", "c.png", window=x), "window is", None),
}
ONE_WILL_DO = ("patch_size of windows", "margin", "in_plane_factor")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("value", [5, "5", "a", [1, "a"], [1, 2, 3, 4, 5], {"a": 1}, [[1], [2]]])
def test_what_is_no_list_of_numbers_gets_a_sentence(name: str, value: Any):
    make, begins, _ = SETTINGS[name]
    if value == 5 and name in ONE_WILL_DO:
        make(value)
        return
    with pytest.raises(InputError) as refused:
        make(value)
    assert str(refused.value).startswith(f"{begins} ")
    assert "; allowed are " in str(refused.value)


@pytest.mark.parametrize("name", [name for name, setting in SETTINGS.items() if setting[2]])
def test_what_is_one_is_taken(name: str):
    make, _, allowed = SETTINGS[name]
    make(allowed)


@pytest.mark.parametrize("name", ["split", "window"])
def test_what_is_one_is_taken_and_its_files_are_looked_for(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"none|[ab]\.nii"):
        SETTINGS[name][0]([1, 2, 3] if name == "split" else [-150, 250])
