"""The bundles that come with the package: beside it in a checkout, within it where installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.collection import INDEX, collection, default_index, known_bundles

from .conftest import REPOSITORY

OTHER = "skin_lesion_rgb_vm_unet_segmentation"  # which ships no weights


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as pip installs it, but for its library, which needs a compiler."""
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", INDEX):
        shutil.copy(REPOSITORY / name, source)
    for name in ("common", "bundles"):
        left_out = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(REPOSITORY / name, source / name, ignore=left_out)
    (source / "bundles" / OTHER / "models").mkdir(exist_ok=True)
    (source / "bundles" / OTHER / "models/model.pt").touch()  # of a training of one's own
    built = tmp_path_factory.mktemp("built")
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(built)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


def test_installed_packages_have_the_bundles_and_the_weights_that_these_tell_of(built: Path):
    names = {file.parents[1].name for file in REPOSITORY.glob("bundles/*/configs/metadata.json")}
    assert {folder.name for folder in (built / "common/bundles").iterdir()} == names
    for name in names:
        ours, installed = REPOSITORY / "bundles" / name, built / "common/bundles" / name
        weights = "weights" in json.loads((ours / "configs/metadata.json").read_text())
        folders = {"configs", "docs", *(["models"] if weights else [])}
        assert {x.name for x in installed.iterdir()} == {"LICENSE", *folders}
        if weights:
            models = {x.name for x in (installed / "models").iterdir()}
            (reference,) = models - {"model.pt", "settings.json"}
            assert len(models) == 3
            assert reference.startswith("reference.")
        for part in ("configs", "docs"):
            files = [x for x in (ours / part).rglob("*") if x.is_file()]
            assert len(files) >= 2
            for file in files:
                assert (installed / file.relative_to(ours)).read_bytes() == file.read_bytes()
    assert (built / "common" / INDEX).read_bytes() == (REPOSITORY / INDEX).read_bytes()


def test_installed_packages_find_them_from_any_folder(built: Path, tmp_path: Path):
    program = "from common.collection import *; import json; "
    program += "print(json.dumps([str(default_index()), *map(str, known_bundles().values())]))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(built)},
    )
    assert done.returncode == 0, done.stderr
    bundles = sorted((built / "common/bundles").iterdir())
    assert json.loads(done.stdout) == [str(built / "common" / INDEX), *map(str, bundles)]


def test_checkouts_have_them_beside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert collection() == REPOSITORY
    monkeypatch.chdir(tmp_path)
    assert default_index() == REPOSITORY / INDEX
    assert known_bundles()[OTHER] == REPOSITORY / "bundles" / OTHER
    (tmp_path / INDEX).write_text("{}")
    assert default_index() == Path(INDEX)


def test_packed_bundles_have_none_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of their own copy of the package; a folder bundles beside it may be anybody's."""
    (tmp_path / "bundles").mkdir()
    monkeypatch.setattr("common.collection._PACKAGE", tmp_path / "common")
    assert collection() is None
    assert default_index() == Path(INDEX)
