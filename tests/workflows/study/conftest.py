"""Studies that tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.data.phantom import write_phantom

from ...conftest import REPOSITORY

BUNDLES = REPOSITORY / "bundles"
LIVER, LUNG = "liver_ct_lightm_unet_segmentation", "lung_cxr_lightm_unet_segmentation"
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def radiographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "cxr"
    return write_phantom(folder, cases=10, seed=1, kind="cxr", size=64, progress=False)


@pytest.fixture
def write(tmp_path: Path, radiographs: Path) -> Write:
    """Write a study of radiographs with these ids in place of its own, and give its file."""

    def make(**content: Any) -> Path:
        study = {
            "title": "Lungs",
            "data": {"dataset_dir": str(radiographs), "seeds": [0]},
            "budget": {"max_epochs": 2},
            "rows": {"LightM-UNet": {"bundle": str(BUNDLES / LUNG)}},
        }
        file = tmp_path / "study.json"
        file.write_text(json.dumps(study | content))
        return file

    return make
