from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd

from common.errors import InputError
from common.transforms import CheckInputd, LoadCheckedImaged


def write(path: Path, values: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return str(path)


def scan(shape: tuple[int, ...] = (8, 9, 10)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def check(image: str, label: str | None = None, in_channels: int = 1, dims: int = 3) -> dict:
    keys = ["image"] if label is None else ["image", "label"]
    transform = Compose(
        [
            LoadCheckedImaged(keys),
            EnsureChannelFirstd(keys),
            CheckInputd("image", in_channels, dims, "label" if label else None, num_classes=3),
        ]
    )
    return transform({"image": image} | ({"label": label} if label else {}))


def sentence(*args, **kwargs) -> str:
    with pytest.raises(RuntimeError) as raised:
        check(*args, **kwargs)
    assert isinstance(raised.value.__cause__, InputError)
    return str(raised.value.__cause__)
