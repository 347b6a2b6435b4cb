import json
import logging
import os
from pathlib import Path

import pytest

from common.data import check_output_folder, image_files, labelled_cases, split_cases
from common.errors import InputError


def make_folders(root: Path, images: list[str], labels: list[str]) -> Path:
    for folder, names in (("imagesTr", images), ("labelsTr", labels)):
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()
    return root


def test_plain_folders_pair_by_name(tmp_path: Path):
    make_folders(tmp_path, ["b.nii.gz", "a.nii", "._a.nii", "notes.txt"], ["a.nii.gz", "b.nii.gz"])
    assert labelled_cases(tmp_path) == [
        {"image": str(tmp_path / "imagesTr/a.nii"), "label": str(tmp_path / "labelsTr/a.nii.gz")},
        {
            "image": str(tmp_path / "imagesTr/b.nii.gz"),
            "label": str(tmp_path / "labelsTr/b.nii.gz"),
        },
    ]


def test_one_file_per_channel(tmp_path: Path):
    make_folders(tmp_path, ["p_0000.nii.gz", "p_0001.nii.gz"], ["p.nii.gz"])
    (case,) = labelled_cases(tmp_path)
    assert [Path(file).name for file in case["image"]] == ["p_0000.nii.gz", "p_0001.nii.gz"]


def test_decathlon_list(tmp_path: Path):
    make_folders(tmp_path, ["a.nii.gz", "unlisted.nii.gz"], ["a.nii.gz"])
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    (case,) = labelled_cases(tmp_path)
    assert Path(case["image"]) == tmp_path / "imagesTr/a.nii.gz"

    entry["label"] = "./labelsTr/gone.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry]}))
    with pytest.raises(InputError, match=r"lists .*gone\.nii\.gz, which does not exist"):
        labelled_cases(tmp_path)

    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="is not in the layout of the Medical"):
        labelled_cases(tmp_path)

    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}}))  # nnU-Net's
    (tmp_path / "imagesTr/unlisted.nii.gz").unlink()
    assert len(labelled_cases(tmp_path)) == 1


def test_split_is_a_partition_and_depends_on_the_seed(tmp_path: Path):
    names = [f"case_{i:02d}.nii.gz" for i in range(20)]
    make_folders(tmp_path, names, names)

    def parts(seed: int) -> list[list[str]]:
        return [
            [Path(case["label"]).name for case in split_cases(tmp_path, split, seed=seed)]
            for split in ("training", "validation", "test")
        ]

    first = parts(0)
    assert [len(part) for part in first] == [14, 2, 4]
    assert sorted(name for part in first for name in part) == names
    assert parts(0) == first
    assert parts(1) != first


def test_bad_splits_are_named(tmp_path: Path):
    make_folders(tmp_path, ["a.nii.gz"], ["a.nii.gz"])
    with pytest.raises(
        InputError, match=r"holds 1 labelled cases.*7:1:2 leaves none for validation"
    ):
        split_cases(tmp_path, "validation")
    with pytest.raises(InputError, match="split is 'val'; allowed are training, validation, test"):
        split_cases(tmp_path, "val")
    with pytest.raises(InputError, match=r"ratios is \[1, 2\]; allowed are three"):
        split_cases(tmp_path, "training", (1, 2))


def test_missing_things_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        labelled_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no folder imagesTr"):
        labelled_cases(tmp_path)
    root = make_folders(tmp_path / "data", [], [])
    with pytest.raises(InputError, match="holds no case"):
        labelled_cases(root)
    (root / "imagesTr/a.nii.gz").touch()
    with pytest.raises(
        InputError, match=r"a\.nii\.gz has no label: needed is .*labelsTr/a\.nii\.gz"
    ):
        labelled_cases(root)


def test_images_to_segment(tmp_path: Path):
    scan = tmp_path / "scan.nii.gz"
    with pytest.raises(InputError, match="There is no folder"):
        image_files(scan)
    with pytest.raises(InputError, match="holds no image"):
        image_files(tmp_path)
    scan.touch()
    assert image_files(scan) == image_files(tmp_path) == [str(scan)]
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs/b.nii").touch()
    assert image_files(tmp_path) == [str(tmp_path / "imagesTs/b.nii")]


def test_output_folder(tmp_path: Path):
    check_output_folder(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output folder .*file cannot be written to"):
        check_output_folder(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        check_output_folder(tmp_path)


def test_lits_split_of_the_paper(tmp_path: Path):
    names = [f"liver_{i}.nii.gz" for i in range(130)]
    make_folders(tmp_path, names, names)
    parts = [
        split_cases(tmp_path, split, (100, 15, 15), seed=42)
        for split in ("training", "validation", "test")
    ]
    assert [len(part) for part in parts] == [100, 15, 15]
    assert len({case["label"] for part in parts for case in part}) == 130


def test_folds_test_every_case_once(tmp_path: Path):
    names = [f"case_{i:02d}.nii.gz" for i in range(10)]
    make_folders(tmp_path, names, names)
    tested = []
    for fold in range(4):
        parts = {
            split: {
                c["label"] for c in split_cases(tmp_path, split, seed=1, fold=fold, num_folds=4)
            }
            for split in ("training", "validation", "test")
        }
        assert len(set.union(*parts.values())) == 10 == sum(map(len, parts.values()))
        tested += parts["test"]
    assert sorted(tested) == sorted(str(tmp_path / "labelsTr" / name) for name in names)
    with pytest.raises(InputError, match="fold is 4 of num_folds 4; allowed are 0 to"):
        split_cases(tmp_path, "test", fold=4, num_folds=4)
    with pytest.raises(InputError, match="holds 10 labelled cases, too few for 11 folds"):
        split_cases(tmp_path, "test", fold=10, num_folds=11)


def test_published_split_is_kept(tmp_path: Path):
    for part, names in (("train", "ab"), ("valid", "c"), ("test", "d")):
        for kind in ("images", "masks"):
            folder = tmp_path / f"{part}_{kind}"
            folder.mkdir()
            for name in names:
                (folder / f"{name}.nii.gz").touch()
    for split, names in (("training", "ab"), ("validation", "c"), ("test", "d")):
        part = split_cases(tmp_path, split, ratios=(1, 1, 1), seed=5)
        assert sorted(Path(str(case["image"])).name[0] for case in part) == list(names)
        assert all("_masks" in case["label"] for case in part)
    with pytest.raises(InputError, match="comes with its own split; allowed is no fold"):
        split_cases(tmp_path, "test", fold=0)
    (tmp_path / "test_masks/d.nii.gz").unlink()
    with pytest.raises(InputError, match=r"d\.nii\.gz has no label"):
        split_cases(tmp_path, "test")
    (tmp_path / "test_images/d.nii.gz").unlink()
    with pytest.raises(InputError, match="test_images holds no image"):
        split_cases(tmp_path, "test")


def make_files(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


MONTGOMERY = [
    f"{folder}/MCU_{i}.png"
    for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")
    for i in (1, 2)
]


def relative(root: Path) -> list[dict]:
    """The cases of a folder, their paths relative to it."""

    def short(files: str | list[str]) -> str | list[str]:
        if isinstance(files, list):
            return [str(short(file)) for file in files]
        return str(Path(files).relative_to(root))

    return [{key: short(files) for key, files in case.items()} for case in labelled_cases(root)]


def test_montgomery_has_two_masks_per_radiograph(tmp_path: Path):
    make_files(tmp_path, *MONTGOMERY, "CXR_png/Thumbs.db", "CXR_png/._MCU_1.png", "dataset.json")
    assert relative(tmp_path) == [
        {
            "image": f"CXR_png/MCU_{i}.png",
            "label": [f"ManualMask/leftMask/MCU_{i}.png", f"ManualMask/rightMask/MCU_{i}.png"],
        }
        for i in (1, 2)
    ]


@pytest.mark.parametrize(
    "mask", ["mask/CHN_1_mask.png", "masks/CHN_1_mask.png", "mask/CHN_1.png", "masks/CHN_1.png"]
)
def test_shenzhen_has_one(tmp_path: Path, mask: str):
    make_files(tmp_path, "CXR_png/CHN_1.png", mask)
    assert relative(tmp_path) == [{"image": "CXR_png/CHN_1.png", "label": mask}]


def test_radiographs_without_a_mask_are_left_out_and_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    names = [f"CHN_{i}" for i in range(12)]
    make_files(tmp_path, *(f"CXR_png/{name}.png" for name in names))
    make_files(tmp_path, *(f"mask/{name}_mask.png" for name in names[:10]))
    with caplog.at_level(logging.WARNING, logger="common.data.cases"):
        parts = [split_cases(tmp_path, part) for part in ("training", "validation", "test")]
    assert [len(part) for part in parts] == [7, 1, 2]
    assert caplog.messages == [
        f"Of the 12 radiographs in {tmp_path}, 2 have no mask: they are left out."
    ]


def test_a_folder_of_both_sets(tmp_path: Path):
    make_files(tmp_path / "Montgomery", *MONTGOMERY)
    make_files(tmp_path / "Shenzhen", "CXR_png/CHN_1.png", "mask/CHN_1_mask.png")
    assert [Path(case["image"]).name for case in labelled_cases(tmp_path)] == [
        "MCU_1.png",
        "MCU_2.png",
        "CHN_1.png",
    ]
    (tmp_path / "Montgomery/ManualMask/leftMask/MCU_1.png").unlink()
    assert len(labelled_cases(tmp_path)) == 2
    assert [Path(file).name for file in image_files(tmp_path, [".png"])] == [
        "MCU_1.png",
        "MCU_2.png",
        "CHN_1.png",
    ]


def test_no_mask_at_all_is_named(tmp_path: Path):
    make_files(tmp_path, "CXR_png/CHN_1.png")
    with pytest.raises(InputError, match=r"holds no radiograph with a mask; needed is CXR_png/"):
        labelled_cases(tmp_path)


def test_radiographs_to_segment(tmp_path: Path):
    make_files(tmp_path, "scan.nii.gz", "b.png", "a.png", "notes.txt")
    assert image_files(tmp_path, [".png"]) == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert image_files(tmp_path / "b.png", [".png"]) == [str(tmp_path / "b.png")]
    assert image_files(tmp_path) == [str(tmp_path / "scan.nii.gz")]
    make_files(tmp_path, "CXR_png/c.png")
    assert image_files(tmp_path, [".png"]) == [str(tmp_path / "CXR_png/c.png")]
    with pytest.raises(InputError, match=r"holds no image; allowed are files that end in \.png\."):
        image_files(make_files(tmp_path / "other", "a.jpg"), [".png"])


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_one_case_in_two_files_is_refused(tmp_path: Path, folder: str):
    make_folders(tmp_path, ["a.nii.gz"], ["a.nii.gz"])
    (tmp_path / folder / "a.nii").touch()
    with pytest.raises(InputError, match=rf"{folder}/a\.nii and .*/a\.nii\.gz are of one name"):
        labelled_cases(tmp_path)
