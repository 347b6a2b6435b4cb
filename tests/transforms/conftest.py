from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from common.errors import InputError
from common.transforms import CheckInputd, LoadCheckedImaged

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def write(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(values, affine), path)
    return str(path)


def scan(shape: tuple[int, ...] = (8, 9, 10)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def check(
    image: str, label: str | None = None, in_channels: int = 1, dims: int = 3, **labels: object
) -> dict:
    keys = ["image"] if label is None else ["image", "label"]
    labels = {"num_classes": 3} | labels
    transform = Compose(
        [
            LoadCheckedImaged(keys),
            EnsureChannelFirstd(keys),
            CheckInputd("image", in_channels, dims, "label" if label else None, **labels),
        ]
    )
    return transform({"image": image} | ({"label": label} if label else {}))


def sentence(*args, **kwargs) -> str:
    return refusal(partial(check, *args, **kwargs))


def refusal(call: Callable[[], object]) -> str:
    """The sentence of an InputError, which MONAI's transforms wrap."""
    with pytest.raises((RuntimeError, InputError)) as raised:
        call()
    error = raised.value if isinstance(raised.value, InputError) else raised.value.__cause__
    assert isinstance(error, InputError)
    return str(error)
