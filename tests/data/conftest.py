"""Fixtures that the tests of data share."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Touch = Callable[..., Path]


@pytest.fixture
def touch(tmp_path: Path) -> Touch:
    """Make empty files below a folder, by default `tmp_path`: layouts are told by names alone."""

    def make(*names: str, root: Path = tmp_path) -> Path:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return make


@pytest.fixture
def dicom_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """DICOM is what is called so, or holds such files: these are empty too."""

    def is_dicom(path: Path) -> bool:
        if Path(path).is_dir():
            return any(Path(path).glob("*.dcm"))
        return Path(path).suffix in (".dcm", ".zip")

    for module in ("names", "find"):
        monkeypatch.setattr(sys.modules[f"common.data.layouts.{module}"], "is_dicom", is_dicom)
