from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import common.collection
from common.collection import collection, known_bundles
from common.errors import InputError
from common.zoo import find, find_bundle
from common.zoo.archives import sha256, write_archive

from ..conftest import REPOSITORY
from .conftest import NAME

BUNDLES = REPOSITORY / "bundles"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder without bundles, and a cache of the test's own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "here"


def made(folder: Path, name: str = NAME) -> Path:
    """What has a bundle's files in so far as they are looked at."""
    (folder / name / "configs").mkdir(parents=True)
    (folder / name / "configs/metadata.json").write_text(json.dumps({"version": "9.9.9"}))
    return folder / name


def zipped(bundle: Path, path: Path) -> Path:
    files = {f"{bundle.name}/{x.relative_to(bundle)}": x for x in bundle.rglob("*") if x.is_file()}
    write_archive(path, files)
    return path


def test_names_are_the_collections_from_anywhere():
    assert collection() == REPOSITORY
    assert find_bundle(NAME) == BUNDLES / NAME
    assert known_bundles() == {
        x.parents[1].name: x.parents[1] for x in BUNDLES.glob("*/configs/metadata.json")
    }


def test_bundles_of_the_current_folder_come_first(elsewhere: Path):
    below = made(elsewhere / "bundles")
    assert find_bundle(NAME) == below
    assert find_bundle(f"bundles/{NAME}") == below
    here = made(elsewhere)
    assert find_bundle(NAME) == find_bundle(f"./{NAME}/") == find_bundle(here) == here
    assert known_bundles()[NAME] == here
    assert known_bundles().keys() == {x.name for x in BUNDLES.iterdir()}


def test_a_folder_by_its_path_is_that_folder_alone(elsewhere: Path):
    with pytest.raises(InputError, match=f"There is no bundle other/{NAME}, by its name"):
        find_bundle(f"other/{NAME}")
    (elsewhere / "empty").mkdir()
    with pytest.raises(InputError, match="empty is no bundle: it has no folder configs"):
        find_bundle("empty")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("liver_ct_lightm_unet", "; the nearest is liver_ct_lightm_unet_segmentation."),
        ("mambaclinix", "; the nearest is liver_tumor_ct_mambaclinix_segmentation."),
        (
            "lightm",
            "; the nearest are hippocampus_mr_lightm_unet_segmentation; liver_ct_lightm_unet_",
        ),
        ("none", "; allowed are abdomen_ct_umamba_segmentation; abdomen_mr"),
    ],
)
def test_near_names_are_named(name: str, expected: str):
    with pytest.raises(InputError) as refused:
        find_bundle(name)
    assert f"There is no bundle {name}, by its name, folder or zip file{expected}" in str(
        refused.value
    )


def test_packages_without_a_collection_have_no_names(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(common.collection, "collection", lambda: None)
    with pytest.raises(InputError, match=f"no bundle {NAME}, .*; allowed are none"):
        find_bundle(NAME)


def test_zip_files_are_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = zipped(made(tmp_path / "work"), tmp_path / "any.zip")
    found = find_bundle(archive)
    assert found == tmp_path / "cache/monai-mamba/bundles" / sha256(archive) / NAME
    assert json.loads((found / "configs/metadata.json").read_text()) == {"version": "9.9.9"}
    assert [x.name for x in found.parent.iterdir()] == [NAME]
    before = (found / "configs/metadata.json").stat().st_ino
    assert find_bundle(archive) == found
    assert (found / "configs/metadata.json").stat().st_ino == before


@pytest.mark.parametrize("change", ["changed", "removed"])
def test_what_is_no_longer_as_it_was_unpacked_is_unpacked_anew(tmp_path: Path, change: str):
    archive = zipped(made(tmp_path / "work"), tmp_path / "any.zip")
    metadata = find_bundle(archive) / "configs/metadata.json"
    before = metadata.read_bytes()
    if change == "changed":
        metadata.write_text("{}")
    else:
        metadata.unlink()
    assert find_bundle(archive) == metadata.parents[1]
    assert metadata.read_bytes() == before


def test_two_processes_may_unpack_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The other one is there first: what it unpacked is taken."""
    archive = zipped(made(tmp_path / "work"), tmp_path / "any.zip")

    def replace_folder(new: Path, target: Path) -> None:
        shutil.copytree(new, target)
        raise OSError("Directory not empty")

    monkeypatch.setattr(find, "replace_folder", replace_folder)
    assert (find_bundle(archive) / "configs/metadata.json").is_file()


def test_zip_files_with_another_checksum_are_refused(tmp_path: Path):
    archive = zipped(made(tmp_path / "work"), tmp_path / "any.zip")
    (tmp_path / "any.zip.sha256").write_text(f"{'0' * 64}  any.zip\n")
    with pytest.raises(InputError, match=f"any.zip has SHA-256 {sha256(archive)}, and .* damaged"):
        find_bundle(archive)
    assert not (tmp_path / "cache").exists()
    (tmp_path / "any.zip.sha256").write_text(f"{sha256(archive)}  any.zip\n")
    assert find_bundle(archive).name == NAME


def test_files_that_are_no_bundles_are_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"notes\.txt cannot be read as a zip file"):
        find_bundle(tmp_path / "notes.txt")
    assert not (tmp_path / "cache").exists()


def test_weights_with_more_than_tensors_are_refused(tmp_path: Path):
    bundle = made(tmp_path / "work")
    (bundle / "models").mkdir()
    (bundle / "models/model.pt").write_bytes(b"no weights")
    archive = zipped(bundle, tmp_path / "any.zip")
    with pytest.raises(InputError, match=r"model\.pt"):
        find_bundle(archive)
    assert not list((tmp_path / "cache").rglob("model.pt"))


def test_caches_that_others_may_write_in_are_refused(tmp_path: Path):
    archive = zipped(made(tmp_path / "work"), tmp_path / "any.zip")
    (tmp_path / "cache/monai-mamba/bundles").mkdir(parents=True)
    (tmp_path / "cache/monai-mamba/bundles").chmod(0o777)
    with pytest.raises(InputError, match=r"others may write in .*; unpack it yourself, or set XDG"):
        find_bundle(archive)
