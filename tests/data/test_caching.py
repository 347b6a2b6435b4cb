from __future__ import annotations

import logging
import multiprocessing
import resource
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, EnsureChannelFirstd, Lambdad, RandFlipd, Transform

from common.data import cached_dataset, split_cases
from common.data.phantom import write_phantom
from common.errors import InputError, input_error_in
from common.transforms import CheckInputd, LoadCheckedImaged, OwnKeysSpacingd

from ..conftest import REPOSITORY

BUNDLES = sorted(folder.name for folder in (REPOSITORY / "bundles").iterdir())
IN_2D = {name for name in BUNDLES if "lcmambanet" in name or "swin_umamba" in name}
# The phantoms have one channel.
OF_PHANTOMS = {"brain_tumor_mr_segmamba_segmentation": {"in_channels": 1}}
Options = dict[str, Any]


class Load(Transform):
    """Of a number above 0 an image; others are the user's to mend, and a path is 0."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def __call__(self, item: dict) -> dict:
        self.log.append(item["image"])
        number = item["image"] if isinstance(item["image"], int) else 0
        if number < 0:
            raise InputError(f"{number} cannot be read; allowed are numbers from 0.")
        return {"image": torch.full((1, 2, 2), float(number))}

    def __getstate__(self) -> dict:
        return {}  # what was done is no setting


class Count(Transform):
    """A line in a file for every case that is prepared, in whichever process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, item: dict) -> dict:
        with self.file.open("a") as stream:
            stream.write("prepared\n")
        return item


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """Another process, which begins anew."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def cases(tmp_path: Path) -> list[dict[str, str]]:
    """One, whose label lies a little off its image: what is said of that is said once."""
    values = np.random.default_rng(0).integers(0, 2, (6, 7, 8)).astype(np.int16)
    case = {}
    for name, origin in (("image", 0.0), ("label", 0.05)):
        case[name] = str(tmp_path / f"{name}.nii.gz")
        affine = nib.affines.from_matvec(np.eye(3), [origin, 0, 0])
        nib.save(nib.Nifti1Image(values, affine), case[name])
    return [case]


def numbers(*items: int) -> list[Options]:
    return [{"image": item} for item in items]


def value(item: Options) -> int:
    return int(item["image"].max())


def preprocessing(counts: Path, spacing: float = 2.0) -> Compose:
    keys = ("image", "label")
    return Compose(
        [
            LoadCheckedImaged(keys),
            EnsureChannelFirstd(keys),
            CheckInputd("image", 1, 3, "label", num_classes=2),
            Count(counts),
            OwnKeysSpacingd(keys, [spacing] * 3, mode=["bilinear", "nearest"]),
            RandFlipd(keys, prob=0.0),
        ]
    )


def prepared(cases: list[Options], folder: Path, spacing: float = 2.0) -> Options:
    transform = preprocessing(folder / "counts", spacing)
    return cached_dataset(cases, transform, "disk", cache_dir=folder / "cache")[0]


def digest(transform: Compose, folder: Path) -> str:
    """Which preprocessing the names of the files in the cache have."""
    dataset = cached_dataset([], transform, "disk", cache_dir=folder)
    return dataset.transform_hash  # type: ignore[attr-defined]


def of_bundle(bundle: str, **options: object) -> list[Compose]:
    """What prepares cases for training and for validation."""
    parser = ConfigParser()
    parser.read_config(REPOSITORY / "bundles" / bundle / "configs/train.json")
    parser.update({name.replace("__", "::"): value for name, value in options.items()})
    return [parser.get_parsed_content(f"{name}::preprocessing") for name in ("train", "validate")]


def prepared_by(bundle: str, case: Options, folder: Path) -> set[tuple[str, int]]:
    """The files in the cache, and when they were written."""
    size = [48, 48] if bundle in IN_2D else [48, 48, 16]
    for transform in of_bundle(bundle, patch_size=size, **OF_PHANTOMS.get(bundle, {})):
        assert cached_dataset([case], transform, "disk", cache_dir=folder)[0]
    return {(file.name, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_a_later_process_finds_what_an_earlier_one_kept(
    elsewhere: ProcessPoolExecutor, cases: list[Options], tmp_path: Path
):
    first = elsewhere.submit(prepared, cases, tmp_path).result()
    [file] = (tmp_path / "cache").iterdir()
    second = prepared(cases, tmp_path)
    assert list((tmp_path / "cache").iterdir()) == [file]
    assert (tmp_path / "counts").read_text() == "prepared\n"
    fresh = cached_dataset(cases, preprocessing(tmp_path / "counts"), "none")[0]
    for item in (first, second):
        for key in ("image", "label"):
            assert torch.equal(item[key], fresh[key])
            assert torch.equal(item[key].affine, fresh[key].affine)
            assert item[key].meta["filename_or_obj"] == cases[0][key]
    (tmp_path / "counts").write_text("")
    assert prepared(cases, tmp_path, spacing=3.0)["image"].shape != first["image"].shape
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_chain_within_the_chain_is_kept_up_to_its_first_random_step(cache: str, tmp_path: Path):
    load = Load()
    inner = Compose([load, RandFlipd("image", prob=0.5)])
    dataset = cached_dataset(numbers(1, 2), Compose([inner]), cache, cache_dir=tmp_path)
    for _ in range(3):
        assert [value(dataset[i]) for i in range(2)] == [1, 2]
    assert sorted(load.log) == [1, 2]


def test_what_was_said_is_no_preprocessing(
    cases: list[Options], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    transform = preprocessing(tmp_path / "counts")
    before = digest(transform, tmp_path / "cache")
    transform(cases[0])
    assert "voxels off its image" in caplog.text
    assert digest(transform, tmp_path / "cache") == before


def test_of_each_bundle_too(
    elsewhere: ProcessPoolExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    found = {}
    for kind, size in (("cxr", 64), ("ct", 48)):
        root = write_phantom(tmp_path / kind, cases=4, kind=kind, size=size, progress=False)
        found[kind] = split_cases(root, "training")[0]
    for bundle in BUNDLES:
        pictures = "cxr" in bundle or "rgb" in bundle
        case, folder = found["cxr" if pictures else "ct"], tmp_path / bundle
        theirs = elsewhere.submit(prepared_by, bundle, case, folder).result()
        assert theirs
        assert prepared_by(bundle, case, folder) == theirs, bundle
    assert "cannot be read" not in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"modality": "MR"},
        {"spacing": [2.0, 2.0, 2.0]},
        {"axcodes": "LPS"},
        {"ignore_label": 9},
        {"intensity__a_min": -100},
        {"in_channels": 2},
    ],
    ids=str,
)
def test_every_setting_counts(options: Options, tmp_path: Path):
    bundle = "liver_ct_lightm_unet_segmentation"
    for one, other in zip(of_bundle(bundle), of_bundle(bundle, **options), strict=True):
        assert digest(one, tmp_path) != digest(other, tmp_path)


def test_functions_are_their_code(tmp_path: Path):
    def scaled(by: float):
        return lambda x: x * by

    functions = [
        *(lambda x: x > 1, lambda x: x > 2, lambda x: [y > 1 for y in x], len, torch.relu),
        *(scaled(1.0), scaled(2.0), partial(torch.add, alpha=1), partial(torch.add, alpha=2)),
        *(torch.ones(2).add, torch.zeros(2).add, {"a", "b"}.union, np.eye(2).dot, np.eye(3).dot),
    ]
    found = [digest(Compose([Lambdad("image", f)]), tmp_path) for f in functions]
    assert len(set(found)) == len(functions)
    assert found[5] == digest(Compose([Lambdad("image", scaled(1.0))]), tmp_path)


@pytest.mark.parametrize("content", ["none", "half", "text", "pickle"])
def test_a_file_that_cannot_be_read_is_written_anew(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    load = Load()
    dataset = cached_dataset(numbers(3), Compose([load]), "disk", cache_dir=tmp_path)
    assert value(dataset[0]) == 3
    [file] = tmp_path.iterdir()
    whole = file.read_bytes()
    if content == "pickle":  # of what is not to be run
        torch.save({"image": Load()}, file)
    else:
        file.write_bytes({"none": b"", "half": whole[: len(whole) // 2], "text": b"text"}[content])
    for _ in range(2):
        assert value(dataset[0]) == 3
    assert list(tmp_path.iterdir()) == [file]
    assert load.log == [3, 3]
    assert caplog.text.count(f"The cached case {file} cannot be read (") == 1


def test_the_temporary_folder_of_the_system_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "on another file system"))
    dataset = cached_dataset(numbers(3), Compose([Load()]), "disk", cache_dir=tmp_path)
    assert value(dataset[0]) == 3
    assert [file.suffix for file in tmp_path.iterdir()] == [".pt"]


@pytest.fixture
def full() -> Iterator[None]:
    """No file may grow beyond a hundred bytes, as on a disk that has no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.usefixtures("full")
def test_a_full_disk_is_said_and_no_fault_of_the_case(strict: bool, tmp_path: Path):
    load = Load()
    dataset = cached_dataset(
        numbers(3, 4), Compose([load]), "disk", cache_dir=tmp_path, strict=strict
    )
    with pytest.raises(InputError) as raised:
        dataset[0]
    assert str(raised.value).startswith(f"cache_dir is {tmp_path}, which cannot be written (")
    assert load.log == [3]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").touch()
    for folder in ("file", "file/cache"):
        with pytest.raises(InputError, match=rf"^cache_dir is .*{folder}, which cannot be written"):
            cached_dataset(numbers(3), Compose([Load()]), "disk", cache_dir=tmp_path / folder)


@pytest.mark.parametrize(
    ("image", "changed"),
    [
        ("ct.nii.gz", "ct.nii.gz"),
        ("series", "series/1.dcm"),
        ("series", "series/part/2.dcm"),
        ("ct.mhd", "ct.raw"),
        ("ct.nhdr", "ct.raw.gz"),
    ],
)
def test_files_that_changed_are_read_again(image: str, changed: str, tmp_path: Path):
    (tmp_path / "series/part").mkdir(parents=True)
    for name in {image, changed} - {"series"}:
        (tmp_path / name).write_text("before")
    load = Load()
    cases = [{"image": str(tmp_path / image)}]
    dataset = cached_dataset(cases, Compose([load]), "disk", cache_dir=tmp_path / "cache")
    for _ in range(2):
        dataset[0]
    assert len(load.log) == 1
    (tmp_path / changed).write_text("afterwards")
    for _ in range(2):
        dataset[0]
    assert len(load.log) == 2


def host(monkeypatch: pytest.MonkeyPatch, available: int, total: int = 1000) -> None:
    memory = SimpleNamespace(available=available, total=total)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def kept(load: Load, *items: int) -> bool:
    """Whether cases are kept in memory; either way they come out right, each time."""
    dataset = cached_dataset(numbers(*items), Compose([load]), "memory")
    for _ in range(2):
        assert [value(dataset[i]) for i in range(len(items))] == list(items)
    return sorted(load.log) == sorted(items)


def test_no_case_is_kept_in_the_last_fifth_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("common.data.caching._ROOT", tmp_path)  # where there are no groups
    host(monkeypatch, 200)
    assert kept(Load(), 1, 2, 3)
    assert not caplog.records
    host(monkeypatch, 199)
    load = Load()
    assert not kept(load, 1, 2, 3)
    assert load.log == [1, 2, 3] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "less than 20% of it is free. --cache disk" in caplog.text


V1, V2 = "4:cpu,memory:/job/step\n3:pids:/\n0::/\n", "0::/job/step\n"
NAMES = {
    V1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    V2: ("", "memory.max", "memory.current", "inactive_file"),
}


@pytest.mark.parametrize("version", [V1, V2], ids=["1", "2"])
@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"job/step": (100, 70, 0)}, True),
        ({"job/step": (100, 90, 0)}, False),
        ({"job/step": (100, 90, 20)}, True),  # 20 of files, which the kernel drops
        ({"job/step": ("none", 90, 0)}, True),
        ({"job/step": ("none", 10, 0), "job": (100, 90, 0)}, False),
        ({"": (100, 90, 0)}, False),  # a container's own, which is called otherwise outside
        ({"other": (100, 90, 0)}, True),
        ({}, True),
    ],
    ids=str,
)
def test_the_limit_of_a_control_group_counts(
    version: str,
    groups: dict[str, tuple[Any, int, int]],
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("common.data.caching._ROOT", tmp_path)
    host(monkeypatch, 900)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(version)
    mount, limit_name, usage_name, dropped_name = NAMES[version]
    none = {V1: "9223372036854771712", V2: "max"}[version]
    for group, (limit, usage, dropped) in groups.items():
        folder = tmp_path / "sys/fs/cgroup" / mount / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit_name).write_text(f"{none if limit == 'none' else limit}\n")
        (folder / usage_name).write_text(f"{usage}\n")
        statistics = f"anon 5\ninactive_file 0\n{dropped_name} {dropped}\n"
        (folder / "memory.stat").write_text(statistics)
    assert kept(Load(), 1, 2) == expected


def test_a_host_with_less_than_its_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("common.data.caching._ROOT", tmp_path)
    host(monkeypatch, 100)
    assert not kept(Load(), 1, 2)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_another_case_takes_the_place_of_a_broken_one(
    cache: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    dataset = cached_dataset(
        numbers(-1, 1, 2, -2, -3),
        Compose([Load()]),
        cache,
        cache_num=4,
        cache_dir=tmp_path,
        strict=False,
    )
    for _ in range(2):
        caplog.clear()
        assert [value(dataset[i]) for i in range(5)] == [1, 1, 2, 1, 1]
        assert caplog.text.count("Another case takes the place of one: ") == 6
        assert "one: -3 cannot be read; allowed are numbers from 0." in caplog.text


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_not_one_can_be_read(cache: str, tmp_path: Path):
    dataset = cached_dataset(
        numbers(-1, -2), Compose([Load()]), cache, cache_dir=tmp_path, strict=False
    )
    with pytest.raises(InputError, match=r"^Not one of the cases can be read"):
        dataset[1]


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_strict_ends_at_the_first(cache: str, tmp_path: Path):
    with pytest.raises(RuntimeError) as raised:
        cached_dataset(numbers(-1, 1), Compose([Load()]), cache, cache_dir=tmp_path)[0]
    assert input_error_in(raised.value) == "-1 cannot be read; allowed are numbers from 0."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strict": "no"}, "strict is 'no'; allowed are True and False."),
        ({"strict": 1}, "strict is 1; allowed are True and False."),
        ({"cache": "ram"}, "cache is 'ram'; allowed are 'memory', 'disk', 'none'."),
        ({"cache": "disk"}, "cache is 'disk', but cache_dir is None; allowed is a folder."),
    ],
    ids=str,
)
def test_arguments(options: Options, sentence: str):
    with pytest.raises(InputError) as raised:
        cached_dataset([], Compose([Load()]), **options)
    assert str(raised.value) == sentence
