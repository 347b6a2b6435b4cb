from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import InputError
from common.zoo.working import copy_bundle, working_folder

from ..conftest import REPOSITORY, read_only
from .conftest import NAME, edit, make_bundle

OURS = REPOSITORY / "bundles" / NAME


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "here"


def test_a_name_is_trained_in_a_copy_of_that_name(here: Path):
    assert working_folder(NAME) == (OURS, here / NAME)
    assert list(here.iterdir()) == []
    copy_bundle(OURS, here / NAME)
    assert working_folder(NAME) == (here / NAME, here / NAME)


def test_a_folder_is_trained_in_itself(here: Path, tmp_path: Path):
    bundle = make_bundle(tmp_path / "theirs")
    assert working_folder(bundle) == (bundle, bundle)
    assert working_folder(OURS) == (OURS, OURS)


def test_a_zip_file_is_trained_in_a_copy(here: Path, packed: Path):
    source, folder = working_folder(packed)
    assert folder == here / NAME
    copy_bundle(source, folder)
    assert {x.name for x in folder.iterdir()} == {"LICENSE", "configs", "docs"}
    assert working_folder(packed) == (folder, folder)


def test_another_folder_may_be_named(here: Path, tmp_path: Path):
    bundle = make_bundle(tmp_path / "theirs")
    (here / "empty").mkdir()
    for name in (NAME, bundle):
        assert working_folder(name, "new/one").folder == here / "new/one"
        assert working_folder(name, "empty").folder == here / "empty"
    copy_bundle(bundle, here / "empty")
    assert working_folder(bundle, "empty") == (here / "empty", here / "empty")


def test_what_a_copy_has(here: Path, tmp_path: Path):
    bundle = make_bundle(tmp_path / "theirs")
    (bundle / "eval").mkdir()
    copy_bundle(bundle, here / "new/one")
    assert {x.name for x in (here / "new/one").iterdir()} == {"LICENSE", "configs", "docs"}
    for part in ("configs", "docs"):
        files = [x for x in (bundle / part).rglob("*") if x.is_file()]
        assert files
        for file in files:
            copied = here / "new/one" / file.relative_to(bundle)
            assert copied.read_bytes() == file.read_bytes()
    assert [x.name for x in (here / "new").iterdir()] == ["one"]


def test_nothing_of_others_is_trained_over(here: Path, tmp_path: Path):
    bundle = make_bundle(tmp_path / "theirs")
    (here / NAME).mkdir()
    (here / NAME / "thesis.tex").touch()
    with pytest.raises(
        InputError, match=f"{NAME} has other files, and no bundle; allowed is a new"
    ):
        working_folder(NAME)
    (here / "file").touch()
    with pytest.raises(InputError, match="file has other files, and no bundle"):
        working_folder(NAME, "file")
    copy_bundle(bundle, here / "copy")
    edit(here / "copy", "metadata", lambda x: x.update(version="0.2.0"))
    with pytest.raises(
        InputError, match=r"of the version '0\.2\.0', and .* has '0\.1\.0'; allowed"
    ):
        working_folder(bundle, "copy")
    other = "liver_ct_lightm_unet_segmentation"
    with pytest.raises(
        InputError, match=f"has a bundle of the name 'Lung.*, and {other} has 'Liver"
    ):
        working_folder(other, "copy")
    assert json.loads((here / "copy/configs/metadata.json").read_text())["version"] == "0.2.0"


@read_only
def test_copies_that_cannot_be_written(here: Path):
    here.chmod(0o500)
    with pytest.raises(InputError, match=f"{NAME} cannot be written"):
        copy_bundle(OURS, here / NAME)
    here.chmod(0o700)
