"""Each layout by empty files: where cases are is told by names alone."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.data import find_cases, image_files, labelled_cases
from common.data.layouts import DataSet
from common.errors import InputError

from .conftest import Touch


def relative(root: Path, data: DataSet | None = None) -> list[dict[str, Any]]:
    """The cases of a folder, their paths relative to it."""
    cases = data.cases if data else labelled_cases(root)
    return [{key: short(root, files) for key, files in case.items()} for case in cases]


def short(root: Path, files: Any) -> Any:
    if isinstance(files, list):
        return [short(root, file) for file in files]
    return str(Path(files).relative_to(root))


def describe(root: Path, name: str = "dataset.json", **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return root / name


# Folders of images and labels


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("imagesTr", "labelsTr"),
        ("images", "labels"),
        ("images", "masks"),
        ("image", "label"),
        ("image", "mask"),
    ],
)
def test_folders_pair_by_name(touch: Touch, images: str, labels: str):
    root = touch(f"{images}/b.NII.GZ", f"{images}/a.nii", f"{images}/._a.nii", f"{images}/c.mha")
    touch(f"{labels}/a.nii.gz", f"{labels}/b_seg.nrrd", f"{labels}/c_Mask.mhd")
    assert relative(root) == [
        {"image": f"{images}/a.nii", "label": f"{labels}/a.nii.gz"},
        {"image": f"{images}/b.NII.GZ", "label": f"{labels}/b_seg.nrrd"},
        {"image": f"{images}/c.mha", "label": f"{labels}/c_Mask.mhd"},
    ]
    assert find_cases(root).layout == "folders"


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg", ".tif", ".TIFF", ".bmp"])
def test_pictures_are_images_too(touch: Touch, ending: str):
    root = touch(f"imagesTr/a{ending}", "labelsTr/a_label.png")
    assert relative(root) == [{"image": f"imagesTr/a{ending}", "label": "labelsTr/a_label.png"}]


def test_names_with_dots_spaces_and_years(touch: Touch):
    names = ["v1.2.nii.gz", "größe [1].nii.gz", "scan_2019.nii.gz", "scan_2020.nii.gz"]
    root = touch(*(f"{folder}/{name}" for folder in ("imagesTr", "labelsTr") for name in names))
    assert [case["image"] for case in relative(root)] == sorted(f"imagesTr/{n}" for n in names)


def test_one_file_per_channel(touch: Touch):
    root = touch("imagesTr/p_0001.nii.gz", "imagesTr/p_0000.nii.gz", "labelsTr/p.nii.gz")
    channels = ["imagesTr/p_0000.nii.gz", "imagesTr/p_0001.nii.gz"]
    assert relative(root) == [{"image": channels, "label": "labelsTr/p.nii.gz"}]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            ["p_0000.nii", "p_0002.nii"],
            r"imagesTr/p lacks 0001 of the channels 0000 to 0002; needed",
        ),
        (["p_0001.nii"], "imagesTr/p lacks 0000 of the channels 0000 to 0001"),
        (["p_0000.nii", "q_0000.nii", "q_0001.nii"], "imagesTr/p lacks 0001 of the channels"),
        (["c0.nii", "c0.nii.gz"], r"imagesTr/c0\.nii and .*/c0\.nii\.gz are of one name; allowed"),
        (["p_0000.nii", "p_0000.nii.gz"], r"p_0000\.nii and .*/p_0000\.nii\.gz are of one name"),
        (
            ["p_2019.nii"],
            r"imagesTr/p lacks 0000; 0001; 0002; 0003; 0004; and 2014 more of the channel",
        ),
        (["p.nii", "p_0000.nii.gz"], r"p\.nii and .*/p_0000\.nii\.gz are of one"),
    ],
)
def test_channels_that_do_not_fit(touch: Touch, images: list[str], message: str):
    root = touch(*(f"imagesTr/{name}" for name in images))
    touch(*(f"labelsTr/{name}.nii" for name in ("p", "q", "c0") if any(name in i for i in images)))
    with pytest.raises(InputError, match=message):
        labelled_cases(root)


@pytest.mark.parametrize("folder", ["imagesTr", "labelsTr"])
def test_one_case_in_two_files_is_refused(touch: Touch, folder: str):
    root = touch("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", f"{folder}/a.nii")
    with pytest.raises(InputError, match=rf"{folder}/a\.nii and .*/a\.nii\.gz are of one name"):
        labelled_cases(root)


def test_all_images_without_a_label_are_listed(touch: Touch):
    root = touch("imagesTr/a.nii.gz", "labelsTr/b.nii.gz")
    with pytest.raises(
        InputError, match=r"An image has no label: .*/a\.nii\.gz; needed are labels"
    ):
        labelled_cases(root)
    touch(*(f"imagesTr/{i:02d}.nii" for i in range(22)))
    with pytest.raises(
        InputError, match=r"23 images have no label: .*00\.nii; .*/19\.nii; and 3 more"
    ):
        labelled_cases(root)


def test_what_is_left_out_is_said_once(touch: Touch, caplog: pytest.LogCaptureFixture):
    root = touch("imagesTr/a.nii.gz", "imagesTr/a.png", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz")
    with caplog.at_level(logging.WARNING, logger="common.data.layouts"):
        assert len(labelled_cases(root)) == len(labelled_cases(root)) == 1
    assert caplog.messages == [
        f"Pictures beside volumes are left out: {root}/imagesTr/a.png.",
        f"Labels without an image are left out: {root}/labelsTr/b.nii.gz.",
    ]


def test_missing_things_are_named(tmp_path: Path, touch: Touch):
    with pytest.raises(InputError, match=r"There is no folder .*nowhere"):
        labelled_cases(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no labelled cases in a layout .* needed are imagesTr"):
        labelled_cases(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    with pytest.raises(InputError, match="holds no case"):
        labelled_cases(tmp_path)


def test_several_layouts_at_once_are_refused(touch: Touch):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii", "volume-1.nii", "segmentation-1.nii")
    with pytest.raises(InputError, match="the layouts of folders and of LiTS; allowed is one"):
        labelled_cases(root)
    touch("images/a.nii", "masks/a.nii")
    with pytest.raises(InputError, match="imagesTr with labelsTr, and images with masks"):
        labelled_cases(root)


# dataset.json


def test_decathlon_list(touch: Touch):
    root = touch("imagesTr/a.nii.gz", "imagesTr/unlisted.nii.gz", "labelsTr/a.nii.gz")
    entry = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    file = describe(
        root,
        training=[entry],
        test=["./imagesTs/b.nii.gz"],
        numTraining=3,
        labels={"0": "background", "1": "liver", "2": "cancer"},
        modality={"0": "CT"},
    )
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # Windows's editors begin with a BOM
    data = find_cases(root)
    assert data.layout == "Medical Segmentation Decathlon"
    assert relative(root, data) == [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]
    assert data.label_values == {"background": 0, "liver": 1, "cancer": 2}
    assert (data.channel_names, data.parts, data.images) == (["CT"], None, [])
    assert list(data.notes) == [
        f"Of the test images that {file} lists 1 of 1 do not exist.",
        f"{file} says numTraining 3, and cases for training are 1.",
    ]


def test_files_that_are_listed_and_missing_are_all_named(touch: Touch):
    root = touch("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    entries = [{"image": "imagesTr/a.nii.gz", "label": f"labelsTr/{i:02d}.nii"} for i in range(22)]
    describe(root, training=entries[:1])
    with pytest.raises(InputError, match=r"lists .*/00\.nii, which does not exist; needed"):
        labelled_cases(root)
    describe(root, training=entries)
    with pytest.raises(InputError, match=r"/00\.nii; .*/19\.nii; and 2 more, which do not exist"):
        labelled_cases(root)


def test_files_elsewhere_are_taken_as_they_are(touch: Touch, tmp_path: Path):
    touch("other/a.nii", "other/b.nii", "data/label.nii", "data/label_2.nii")
    absolute, leaves = str(tmp_path / "other/a.nii"), "../other/b.nii"
    entries = [
        {"image": absolute, "label": "label.nii"},
        {"image": leaves, "label": "label_2.nii"},
    ]
    describe(tmp_path / "data", training=entries)
    images = [case["image"] for case in labelled_cases(tmp_path / "data")]
    assert images == [absolute, str(tmp_path / "data" / leaves)]


def test_lists_of_files_and_of_channels(touch: Touch):
    touch(*(f"imagesTr/{name}.nii.gz" for name in ("a", "b_0000", "b_0001", "flair", "t2")))
    root = touch("labelsTr/a.nii.gz", "labelsTr/b_seg.nii.gz", "labelsTr/c.nii.gz")
    channels = ["imagesTr/flair.nii.gz", "imagesTr/t2.nii.gz"]
    several = {"image": channels, "label": "labelsTr/c.nii.gz"}
    describe(root, training=["./imagesTr/a.nii.gz", "imagesTr/b.nii.gz", several])
    assert relative(root) == [
        {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"},
        {
            "image": ["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"],  # as nnU-Net v1 lists it
            "label": "labelsTr/b_seg.nii.gz",
        },
        several,
    ]
    (root / "labelsTr/a.nii.gz").unlink()
    with pytest.raises(
        InputError, match=r"An image has no label: .*/a\.nii\.gz; needed are labels"
    ):
        labelled_cases(root)


def test_published_parts_of_a_list(touch: Touch):
    root = touch(*(f"{name}{kind}.nii" for name in "abc" for kind in ("", "_seg")), "d.nii")
    a, b, c = ({"image": f"{x}.nii", "label": f"{x}_seg.nii"} for x in "abc")
    describe(root, training=[a], validation=[b], test=[c, "d.nii"])
    data = find_cases(root)
    assert data.parts is not None
    assert {split: len(part) for split, part in data.parts.items()} == {
        "training": 1,
        "validation": 1,
        "test": 1,
    }
    assert (relative(root, data), short(root, data.images)) == ([a, b, c], ["d.nii"])
    assert short(root, image_files(root)) == ["c.nii", "d.nii"]  # beside images and labels
    describe(root, training=[a], validation=[a])
    with pytest.raises(InputError, match=r"lists .*/a\.nii twice; allowed is once"):
        labelled_cases(root)


def test_folds_of_a_list(touch: Touch):
    root = touch(*(f"{name}{kind}.nii" for name in "cab" for kind in ("", "_seg")))
    entries = [{"image": f"{x}.nii", "label": f"{x}_seg.nii", "fold": ord(x)} for x in "cab"]
    del entries[0]["fold"]
    describe(root, training=entries)
    data = find_cases(root)
    assert (relative(root, data)[0]["image"], data.folds) == ("a.nii", [97, 98, None])
    describe(root, training=[entries[0] | {"fold": "first"}])
    with pytest.raises(InputError, match="has the \"fold\" 'first'; allowed are whole numbers"):
        find_cases(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ('{"training": [], "training": []}', "has 'training' twice"),
        ('{"training": "all"}', "has 'training' 'all'; allowed is a list"),
        ('{"training": [{"label": "a.nii"}]}', "is not in the layout of the Medical .* lists None"),
        ('{"training": [3]}', "lists 3; allowed are"),
        ('{"training": [], "labels": ["liver"]}', r"has labels \['liver'\]; allowed are"),
        ('{"labels": {"ignore": [1]}}', r'the label "ignore" \[1\]; allowed is one whole number'),
    ],
)
def test_lists_that_cannot_be_read(touch: Touch, content: str, message: str):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii")
    (root / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=message):
        labelled_cases(root)


def test_nnunet_raw(touch: Touch):
    root = touch(*(f"imagesTr/p{i}_000{c}.nrrd" for i in (1, 2) for c in (0, 1)))
    touch("labelsTr/p1.nrrd", "labelsTr/p2.nrrd", "imagesTs/q_0000.nrrd", "imagesTs/q_0001.nrrd")
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    stated = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nrrd"}
    file = describe(root, **stated, numTraining=3)
    data = find_cases(root)
    assert data.layout == "nnU-Net raw"
    assert [len(case["image"]) for case in data.cases] == [2, 2]
    assert data.label_values == {"background": 0, "whole": [1, 2], "core": 2}
    assert (data.ignore_label, data.channel_names) == (3, ["T1", "T2"])
    assert list(data.notes) == [f"{file} says numTraining 3, and cases for training are 2."]
    assert data.images == image_files(root)
    assert short(root, data.images) == [["imagesTs/q_0000.nrrd", "imagesTs/q_0001.nrrd"]]

    describe(root, **stated | {"channel_names": {"0": "T1"}})
    with pytest.raises(InputError, match="names the channels T1, but p1 has 2; p2 has 2; needed"):
        find_cases(root)
    describe(root, **stated | {"file_ending": ".npy"})
    with pytest.raises(InputError, match=r"has the file_ending '\.npy'; allowed are \.nii\.gz, "):
        find_cases(root)


def test_nnunet_raw_of_one_file_with_all_channels(touch: Touch):
    """RGB pictures, and 4D files without a channel's number."""
    root = touch("imagesTr/a_0000.png", "labelsTr/a.png")
    describe(root, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png")
    assert relative(root) == [{"image": "imagesTr/a_0000.png", "label": "labelsTr/a.png"}]
    (root / "imagesTr/a_0000.png").rename(root / "imagesTr/a.nii.gz")
    (root / "labelsTr/a.png").rename(root / "labelsTr/a.nii.gz")
    describe(root, channel_names={"0": "T1", "1": "T2"}, file_ending=".nii.gz")
    assert relative(root) == [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}]


def test_nnunet_raw_that_names_its_files(touch: Touch, tmp_path: Path):
    root = touch("x.nii.gz", "y.nii.gz")
    case = {"images": [str(tmp_path / "x.nii.gz")], "label": "y.nii.gz"}
    describe(root, dataset={"p": case}, channel_names={"0": "CT"}, file_ending=".nii.gz")
    assert relative(root) == [{"image": "x.nii.gz", "label": "y.nii.gz"}]
    describe(root, dataset={"p": case, "q": case | {"images": ["x.nii.gz"]}})
    with pytest.raises(
        InputError, match=r"dataset\.json lists .*/x\.nii\.gz twice; allowed is once"
    ):
        find_cases(root)
    describe(root, dataset={"p": {"images": ["x.nii.gz"]}})
    with pytest.raises(InputError, match=r"\"dataset\" that is not nnU-Net's .*; allowed is"):
        find_cases(root)


# As downloaded


def test_lits_in_folders_by_number(touch: Touch):
    root = touch("Training Batch 1/volume-0.nii", "Training Batch 1/segmentation-0.nii")
    for name in ("volume-10", "segmentation-10", "volume-2", "segmentation-2", "segmentation-3"):
        touch(f"Training Batch 2/{name}.nii")
    touch("Training Batch 2/readme.txt")
    data = find_cases(root)
    assert data.layout == "LiTS"
    assert [Path(str(case["image"])).name for case in data.cases] == [
        *("volume-0.nii", "volume-2.nii", "volume-10.nii")
    ]
    assert data.notes == [
        f"Labels without an image are left out: {root}/Training Batch 2/segmentation-3.nii."
    ]
    assert [Path(str(file)).name for file in image_files(root)] == [
        *("volume-0.nii", "volume-2.nii", "volume-10.nii")
    ]
    touch("Test/test-volume-3.nii")
    assert short(root, image_files(root)) == ["Test/test-volume-3.nii"]
    assert short(root, find_cases(root).images) == ["Test/test-volume-3.nii"]
    touch("Training Batch 1/volume-2.nii.gz")
    with pytest.raises(InputError, match=r"1/volume-2\.nii\.gz and .*2/volume-2\.nii are of one"):
        find_cases(root)


def test_lits_in_one_folder_or_in_imagestr(touch: Touch, tmp_path: Path):
    flat = touch("volume-1.nii.gz", "segmentation-1.nii.gz", root=tmp_path / "flat")
    assert relative(flat) == [{"image": "volume-1.nii.gz", "label": "segmentation-1.nii.gz"}]
    touch("volume-7.nii.gz", root=flat)
    with pytest.raises(
        InputError, match=r"no label: .*/volume-7\.nii\.gz; needed .*segmentation-N"
    ):
        labelled_cases(flat)
    tidy = touch("imagesTr/volume-1.nii", "labelsTr/segmentation-1.nii", root=tmp_path / "tidy")
    assert relative(tidy) == [
        {"image": "imagesTr/volume-1.nii", "label": "labelsTr/segmentation-1.nii"}
    ]


@pytest.mark.parametrize(
    ("case", "names"),
    [
        ("BraTS20_001", ["_flair", "_t1", "_t1ce", "_t2"]),
        ("HGG/BraTS18_001", ["_flair", "_t1", "_t1ce", "_t2"]),
        ("BraTS-GLI-00000-000", ["-t2f", "-t1n", "-t1c", "-t2w"]),
    ],
)
def test_brats(touch: Touch, case: str, names: list[str]):
    """FLAIR, T1, T1 with contrast, T2: as the Decathlon's Task01."""
    stem = f"{case}/{Path(case).name}"
    channels = [f"{stem}{name}.nii.gz" for name in names]
    root = touch(*channels)
    assert short(root, image_files(root)) == [channels]
    label = f"{stem}{names[0][0]}seg.nii.gz"
    touch(label)
    data = find_cases(root)
    assert (data.layout, data.images) == ("BraTS", [])
    assert relative(root, data) == [{"image": channels, "label": label}]
    assert short(root, image_files(root)) == [channels]
    other = touch(*(channel.replace("00", "77") for channel in channels))
    with pytest.raises(InputError, match=r"An image has no label: .*77.*; needed are labels"):
        labelled_cases(other)
    (root / channels[1]).unlink()
    with pytest.raises(InputError, match=rf"{case} lacks .*{names[1]}; needed of each case are"):
        labelled_cases(root)


# In parts


@pytest.mark.parametrize(
    ("train", "valid", "test", "masks"),
    [
        ("train_", "valid_", "test_", "masks"),
        ("train/", "val/", "test/", "masks"),
        ("training/", "validation/", "test/", "labels"),
    ],
)
def test_folders_of_parts(touch: Touch, train: str, valid: str, test: str, masks: str):
    for part, names in ((train, "ab"), (valid, "c"), (test, "d")):
        for name in names:
            root = touch(f"{part}images/{name}.nii.gz", f"{part}{masks}/{name}.nii.gz")
    data = find_cases(root)
    assert data.parts is not None
    found = {
        split: [Path(str(c["image"])).name[0] for c in part] for split, part in data.parts.items()
    }
    assert found == {"training": ["a", "b"], "validation": ["c"], "test": ["d"]}
    assert len(data.cases) == 4
    assert short(root, image_files(root)) == [f"{test}images/d.nii.gz"]
    (root / f"{test}{masks}/d.nii.gz").unlink()
    with pytest.raises(InputError, match=r"d\.nii\.gz; needed are labels of the same names"):
        find_cases(root)
    (root / f"{test}{masks}").rmdir()
    assert short(root, find_cases(root).images) == [f"{test}images/d.nii.gz"]
    touch("valid_images/c.nii", "val/images/c.nii")
    with pytest.raises(InputError, match="are both there for validation; allowed is one"):
        find_cases(root)


# Chest radiographs

MONTGOMERY = [
    f"{folder}/MCU_{i}.png"
    for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask")
    for i in (1, 2)
]


def test_montgomery_has_two_masks_per_radiograph(touch: Touch, dicom_by_name: None):
    root = touch(*MONTGOMERY, "CXR_png/Thumbs.db", "CXR_png/._MCU_1.png", "dataset.json")
    assert relative(root) == [
        {
            "image": f"CXR_png/MCU_{i}.png",
            "label": [f"ManualMask/leftMask/MCU_{i}.png", f"ManualMask/rightMask/MCU_{i}.png"],
        }
        for i in (1, 2)
    ]


@pytest.mark.parametrize(
    "mask", ["mask/CHN_1_mask.png", "masks/CHN_1_mask.PNG", "mask/CHN_1.tif", "masks/CHN_1.png"]
)
@pytest.mark.parametrize("image", ["CXR_png/CHN_1.png", "CXR_png/CHN_1.JPG"])
def test_shenzhen_has_one(touch: Touch, image: str, mask: str):
    assert relative(touch(image, mask)) == [{"image": image, "label": mask}]


def test_a_folder_of_both_sets(touch: Touch, tmp_path: Path):
    touch(*MONTGOMERY, root=tmp_path / "Montgomery")
    touch("CXR_png/CHN_1.png", "mask/CHN_1_mask.png", root=tmp_path / "Shenzhen")
    names = ["MCU_1.png", "MCU_2.png", "CHN_1.png"]
    assert [Path(str(case["image"])).name for case in labelled_cases(tmp_path)] == names
    (tmp_path / "Montgomery/ManualMask/leftMask/MCU_1.png").unlink()
    assert len(labelled_cases(tmp_path)) == 2
    assert [Path(str(file)).name for file in image_files(tmp_path, 2)] == names


def test_no_mask_at_all_is_named(touch: Touch):
    with pytest.raises(InputError, match=r"holds no radiograph with a mask; needed is CXR_png/"):
        labelled_cases(touch("CXR_png/CHN_1.png"))


# ISIC's challenges

ISIC = {
    "2016": (
        "ISBI2016_ISIC_Part1_{}_Data/ISIC_0000000.jpg",
        "ISBI2016_ISIC_Part1_{}_GroundTruth/ISIC_0000000_Segmentation.png",
    ),
    "2017": (
        "ISIC-2017_{}_Data/ISIC_0000000.jpg",
        "ISIC-2017_{}_Part1_GroundTruth/ISIC_0000000_segmentation.png",
    ),
    "2018": (
        "ISIC2018_Task1-2_{}_Input/ISIC_0000000.jpg",
        "ISIC2018_Task1_{}_GroundTruth/ISIC_0000000_segmentation.png",
    ),
}


@pytest.mark.parametrize("year", ISIC)
def test_isic_as_downloaded(touch: Touch, year: str):
    image, label = (name.format("Training") for name in ISIC[year])
    root = touch(image, label, "ISIC2018_Task2_Training_GroundTruth_v3/ISIC_0000000_a.png")
    touch(f"{Path(image).parent}/ATTRIBUTION.txt")
    data = find_cases(root)
    assert (data.layout, data.parts) == ("ISIC", None)
    assert relative(root, data) == [{"image": image, "label": label}]


def test_isic_comes_in_parts(touch: Touch):
    """Beside the photographs of 2017 are superpixels; the test's folders have their version."""
    names = {"training": "Training", "validation": "Validation", "test": "Test_v2"}
    root = touch(*(file.format(part) for part in names.values() for file in ISIC["2017"]))
    touch(*(f"ISIC-2017_{p}_Data/ISIC_0000000_superpixels.png" for p in names.values()))
    data = find_cases(root)
    assert data.parts is not None
    for split, part in names.items():
        image, label = (name.format(part) for name in ISIC["2017"])
        of_part = data._replace(cases=data.parts[split])
        assert relative(root, of_part) == [{"image": image, "label": label}]
    photographs = ["ISIC-2017_Test_v2_Data/ISIC_0000000.jpg"]
    assert short(root, image_files(root, 2)) == photographs
    assert short(root, image_files(root / "ISIC-2017_Test_v2_Data", 2)) == photographs
    (root / "ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0000000_segmentation.png").unlink()
    (root / "ISIC-2017_Test_v2_Part1_GroundTruth").rmdir()
    data = find_cases(root)
    assert short(root, data.images) == photographs
    assert data.parts is not None
    assert list(data.parts) == ["training", "validation"]


def test_what_of_isic_is_not_there(touch: Touch, tmp_path: Path):
    image, label = (name.format("Training") for name in ISIC["2018"])
    with pytest.raises(InputError, match=r"Training_Input has no masks; needed is the folder of"):
        labelled_cases(touch(image))
    touch(label, image.replace("0000000", "0000001"))
    with pytest.raises(InputError, match=r"An image has no label: \S*ISIC_0000001\.jpg; needed"):
        labelled_cases(tmp_path)
    touch(ISIC["2017"][0].format("Training"))
    with pytest.raises(InputError, match="are both there for training; allowed is one of them"):
        labelled_cases(tmp_path)


def test_isics_names_in_folders(touch: Touch):
    root = touch("images/ISIC_0000001.jpg", "masks/ISIC_0000001_segmentation.png")
    assert relative(root) == [
        {"image": "images/ISIC_0000001.jpg", "label": "masks/ISIC_0000001_segmentation.png"}
    ]


# A list that somebody wrote


def test_cases_file_of_csv(touch: Touch, tmp_path: Path):
    root = touch("lists/a1.nii", "lists/a2.nii", "b.mha", "c.nii", "la.nii", "lb.nii")
    file = root / "lists/cases.csv"
    file.write_text(
        "\ufeffid,image,label,split\n"
        "1,a1.nii; a2.nii,../la.nii,training\n"
        f"2,{tmp_path}/b.mha,../lb.nii,test\n"
        "3,../c.nii,,test\n"
    )
    data = find_cases("nowhere", file)
    assert data.layout == "cases_file"
    a, b = data.cases
    assert a["image"] == [str(root / "lists/a1.nii"), str(root / "lists/a2.nii")]
    assert (b["image"], data.parts) == (str(root / "b.mha"), {"training": [a], "test": [b]})
    assert data.images == [str(root / "lists/../c.nii")]
    assert labelled_cases("nowhere", cases_file=file) == [a, b]


def test_cases_file_of_json(touch: Touch, tmp_path: Path):
    root = touch("a1.nii", "a2.nii", "la.nii")
    case = {"image": ["a1.nii", "a2.nii"], "label": "la.nii"}
    (root / "cases.json").write_text(json.dumps([case]))
    assert relative(root, find_cases("", root / "cases.json")) == [case]
    describe(root, "folds.json", training=[case | {"fold": 0}])  # MONAI's, which may lie anywhere
    assert find_cases("", root / "folds.json").folds == [0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "picture,label\n",
            r"cases\.csv, line 1, has the header 'picture,label'; needed are image",
        ),
        ("image,label,image\n", r"line 1, has the header .*each once"),
        ("image,label\na.nii\n", "line 2, has not as many fields as the header, 2"),
        ("image,label\na.nii,b.nii,c.nii\n", "line 2, has not as many fields"),
        ("image,label\n\n,a.nii\n", "line 3, names no image; allowed are"),
        ("image,label,split\na.nii,b.nii,train\n", "line 2, has the split 'train'; allowed are"),
        ("image,label,split\na.nii,,training\n", "line 2, has no label, and is for training"),
        ("image,label,split\na.nii,b.nii,\na.nii,b.nii,test\n", "line 2, has no split, and others"),
        ("image,label\na.nii,c.nii\n", r"lists .*/c\.nii, which does not exist"),
        ("image,label\na.nii,b.nii\na.nii,b.nii\n", r"lists .*/a\.nii twice"),
        ('image,label\n"a.nii', "cannot be read as CSV"),
    ],
)
def test_csv_that_cannot_be_read(touch: Touch, content: str, message: str):
    root = touch("a.nii", "b.nii")
    (root / "cases.csv").write_text(content)
    with pytest.raises(InputError, match=message):
        labelled_cases(root, root / "cases.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cases.json", "{}", "entry 0, is not as allowed: a list of"),
        ("cases.json", '[{"image": "a.nii"}, {"image": 3}]', "entry 1, is not as allowed"),
        ("cases.json", '[{"image": "a.nii", "split": 1}]', "entry 0, is not as allowed"),
        ("cases.json", '[{"image": "a.nii"}]', "holds no case; needed is at least one image with"),
        ("cases.txt", "", r"cases_file is .*\.txt; allowed are files that end in \.json and \.csv"),
    ],
)
def test_other_lists_that_cannot_be_read(touch: Touch, name: str, content: str, message: str):
    root = touch("a.nii", "b.nii")
    (root / name).write_text(content)
    with pytest.raises(InputError, match=message):
        labelled_cases(root, root / name)
    with pytest.raises(InputError, match=r"gone\.csv cannot be read"):
        labelled_cases(root, root / "gone.csv")


@pytest.mark.parametrize("spelling", ["../cf/a.nii", "./b/../a.nii", "link.nii"])
def test_one_file_spelled_in_two_ways_is_listed_twice(touch: Touch, tmp_path: Path, spelling: str):
    root = touch("a.nii", "la.nii", "lb.nii", "b/c.nii", root=tmp_path / "cf")
    (root / "link.nii").symlink_to(root / "a.nii")
    (root / "cases.csv").write_text(f"image,label\na.nii,la.nii\n{spelling},lb.nii\n")
    with pytest.raises(InputError, match=f"lists {root / spelling} twice; allowed is once"):
        labelled_cases(root, root / "cases.csv")


def test_masks_may_be_links_to_one_file(touch: Touch):
    root = touch("a.nii", "b.nii", "empty.nii")
    for name in ("la.nii", "lb.nii"):
        (root / name).symlink_to(root / "empty.nii")
    (root / "cases.csv").write_text("image,label\na.nii,la.nii\nb.nii,lb.nii\n")
    assert len(labelled_cases(root, root / "cases.csv")) == 2


# Images to segment


def test_images_to_segment(tmp_path: Path, touch: Touch, dicom_by_name: None):
    scan = tmp_path / "scan.nii.gz"
    with pytest.raises(InputError, match="There is no folder"):
        image_files(scan)
    with pytest.raises(
        InputError, match=r"holds no image; allowed are files that end in \.nii\.gz"
    ):
        image_files(tmp_path)
    scan.touch()
    assert image_files(scan) == image_files(tmp_path) == [str(scan)]
    touch("imagesTs/b.NII")
    assert image_files(tmp_path) == [str(tmp_path / "imagesTs/b.NII")]


def test_channels_to_segment(touch: Touch):
    root = touch("p_0000.nii.gz", "p_0001.nii.gz", "q_0000.nii.gz", "q_0001.nii.gz")
    assert short(root, image_files(root)) == [
        ["p_0000.nii.gz", "p_0001.nii.gz"],
        ["q_0000.nii.gz", "q_0001.nii.gz"],
    ]
    assert image_files(root / "p_0000.nii.gz") == [str(root / "p_0000.nii.gz")]
    (root / "q_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="q lacks 0000 of the channels 0000 to 0001"):
        image_files(root)


@pytest.mark.parametrize(
    ("own", "others"),
    [
        (["extra.nii.gz", "volume-0.nii", "volume-1.nii"], []),
        (["a.nii.gz", "b.nii.gz"], ["old/volume-3.nii"]),
        (["a.nii.gz"], ["x/x_flair.nii.gz"]),
        (["a.nii.gz"], [f"x/x_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2")]),
    ],
)
def test_names_of_lits_and_brats_hide_no_other_image(
    touch: Touch, own: list[str], others: list[str]
):
    root = touch(*own, *others)
    assert short(root, image_files(root)) == own


def test_the_test_images_of_a_list_whose_cases_are_not_there(touch: Touch):
    root = touch("a.nii", "b.nii")
    entry = {"image": "imagesTr/p.nii", "label": "labelsTr/p.nii"}
    describe(root, training=[entry], test=["b.nii", "gone.nii"])
    assert short(root, image_files(root)) == ["b.nii"]
    describe(root, training=[entry])
    assert short(root, image_files(root)) == ["a.nii", "b.nii"]


def test_numbers_that_are_no_channels(touch: Touch):
    """No file of these is 0000."""
    root = touch("case_0001.nii.gz", "case_0002.nii.gz", "scan_2019.nii.gz")
    assert len(image_files(root)) == 3


def test_the_test_images_of_a_list(touch: Touch, dicom_by_name: None):
    root = touch("scans/a.nii", "labels/a.nii", "more/b.nii")
    describe(
        root, training=[{"image": "scans/a.nii", "label": "labels/a.nii"}], test=["more/b.nii"]
    )
    assert short(root, image_files(root)) == ["more/b.nii"]


def test_dicom_series_are_images(touch: Touch, tmp_path: Path, dicom_by_name: None):
    root = touch("1.2.840/0.dcm", "1.2.840/1.dcm", "zipped.zip", "notes/read.txt", "lone.dcm")
    assert short(root, image_files(root)) == ["1.2.840", "zipped.zip"]
    assert image_files(root / "1.2.840") == [str(root / "1.2.840")]
    assert image_files(root / "zipped.zip") == [str(root / "zipped.zip")]
    labelled = touch(
        "imagesTr/1.2.840/0.dcm", "labelsTr/1.2.840.nii.gz", root=tmp_path / "labelled"
    )
    assert relative(labelled) == [{"image": "imagesTr/1.2.840", "label": "labelsTr/1.2.840.nii.gz"}]


def test_radiographs_to_segment(touch: Touch, tmp_path: Path, dicom_by_name: None):
    root = touch("scan.nii.gz", "b.PNG", "a.jpg", "notes.txt", "c.dcm")
    assert short(root, image_files(root, 2)) == ["a.jpg", "b.PNG", "c.dcm"]
    assert short(root, image_files(root)) == ["scan.nii.gz"]
    touch("CXR_png/c.png")
    assert short(root, image_files(root, 2)) == ["CXR_png/c.png"]
    with pytest.raises(InputError, match=r"holds no image; allowed are files that end in \.png, "):
        image_files(touch("a.nii", root=tmp_path / "other"), 2)


def test_what_is_not_segmented_is_said(touch: Touch, caplog: pytest.LogCaptureFixture):
    root = touch("a.nii.gz", "b.mnc", "late/x.dat", "notes.txt", "labelsTr/a.nii.gz", ".hidden")
    with caplog.at_level(logging.WARNING):
        assert image_files(root) == [str(root / "a.nii.gz")]
    assert f"{root} has what is not segmented: b.mnc; late." in caplog.text


def test_folders_that_may_not_be_read(
    touch: Touch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As with a disk's lost+found, for anybody but root."""
    root, iterdir = touch("a.nii.gz", "lost+found/x"), Path.iterdir

    def denied(path: Path) -> Iterator[Path]:
        if path.name == "lost+found":
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=r"lost\+found cannot be looked into \(Permission denied"):
        find_cases(root)
    with caplog.at_level(logging.WARNING):
        assert image_files(root) == [str(root / "a.nii.gz")]
    assert "not segmented: lost+found." in caplog.text


@pytest.mark.parametrize("column", ["Split", "fold", "set"])
def test_columns_that_nobody_reads_are_refused(touch: Touch, column: str):
    root = touch("a.nii", "b.nii")
    (root / "cases.csv").write_text(f"image,label,{column}\na.nii,b.nii,test\n")
    with pytest.raises(InputError, match=f"header 'image,label,{column}'; needed are image and"):
        find_cases(root, root / "cases.csv")
    (root / "cases.json").write_text(
        json.dumps([{"image": "a.nii", "label": "b.nii", column: "test"}])
    )
    with pytest.raises(InputError, match="entry 0, is not as allowed"):
        find_cases(root, root / "cases.json")


@pytest.mark.parametrize("other", ["Volume-01.nii", "volume-1.nii.gz", "VOLUME-001.NII"])
def test_numbers_of_lits_that_are_one(touch: Touch, other: str):
    root = touch("a/volume-1.nii", "a/segmentation-1.nii", f"b/{other}")
    with pytest.raises(InputError, match=r"volume-1\.nii and .*b/.* are of one name; allowed is"):
        find_cases(root)


def test_only_files_of_nnunets_file_ending_count(touch: Touch):
    kept = ("imagesTr/a_0000.nrrd", "labelsTr/a.nrrd", "imagesTs/q_0000.nrrd")
    others = ("imagesTr/a_0000.nii.gz", "labelsTr/b.nii", "imagesTs/r.nii")
    root = touch(*kept, *others)
    describe(root, channel_names={"0": "CT"}, labels={"background": 0}, file_ending=".NRRD")
    data = find_cases(root)
    assert relative(root, data) == [{"image": kept[0], "label": kept[1]}]
    assert short(root, data.images) == [kept[2]]
    (note,) = data.notes
    assert note.startswith("What does not end in .NRRD, the file_ending, is left out: ")
    assert all(str(root / other) in note for other in others)
    describe(root, channel_names={"0": "CT"}, file_ending=".mha")
    with pytest.raises(InputError, match=r"has the file_ending '\.mha', .*imagesTr has no such"):
        find_cases(root)


@pytest.mark.parametrize("key", ["channel_names", "modality"])
@pytest.mark.parametrize("names", [5, True, [1], {"0": 5}, {"0": ["CT"]}])
def test_names_of_channels_that_are_none(touch: Touch, key: str, names: Any):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii")
    describe(root, **{key: names})
    with pytest.raises(
        InputError, match=rf"dataset\.json has {key} .*; allowed are \{{\"0\": \"CT"
    ):
        find_cases(root)


@pytest.mark.parametrize("value", [1.5, True, None, "x"])
def test_values_of_labels_that_are_none(touch: Touch, value: Any):
    root = touch("imagesTr/a.nii", "labelsTr/a.nii")
    describe(root, labels={"background": 0, "liver": value})
    with pytest.raises(InputError, match=r"dataset\.json has labels .*; allowed are"):
        find_cases(root)


@pytest.mark.parametrize("folder", ["imagesTr", "images", "train_images"])
def test_where_the_images_to_segment_may_be_is_said(touch: Touch, folder: str):
    root = touch(f"{folder}/a.nii.gz", "imagesTs/readme.txt")
    with pytest.raises(InputError, match=rf"holds no image; .* images are in {root}/{folder}\.$"):
        image_files(root)
    with pytest.raises(InputError, match=r"holds no image; .* and DICOM\.$"):
        image_files(root, 2)


def test_names_that_no_file_has(touch: Touch):
    """Of more bytes than a name may have."""
    long = "x" * 300
    with pytest.raises(InputError, match=r"There is no folder x{300}; needed"):
        find_cases(long)
    with pytest.raises(InputError, match=r"There is no folder x{300}; needed"):
        image_files(long)
    root = touch("a.nii", "a_seg.nii")
    (root / "cases.csv").write_text(f"image,label\n{long}.nii,a_seg.nii")
    with pytest.raises(InputError, match="which does not exist"):
        find_cases(root, root / "cases.csv")
    describe(root, training=[{"image": f"{long}.nii", "label": "a_seg.nii"}])
    with pytest.raises(InputError, match="which does not exist"):
        find_cases(root)
