from pathlib import Path

import pytest

from common.data import OutputLayout, image_files, outputs
from common.errors import InputError


def touch(root: Path, *names: str) -> list[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [str(root / name) for name in names]


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("data/scan.nii.gz", "scan_seg.nii.gz"),
        ("data/imagesTs/scan.nii", "scan_seg.nii.gz"),
        ("data/imagesTr/scan.nii", "imagesTr/scan_seg.nii.gz"),
        ("data/A/CXR_png/scan.png", "A/scan_seg.nii.gz"),
        ("data/A/b/scan.1.png", "A/b/scan.1_seg.nii.gz"),
        ("database/scan.nii.gz", "scan_seg.nii.gz"),
        ("scan.nii.gz", "scan_seg.nii.gz"),
    ],
)
def test_folders_below_the_data_set_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, mask: str
):
    monkeypatch.chdir(tmp_path)
    for dataset in ("data", tmp_path / "data", "./data/"):
        layout = OutputLayout("out", dataset)
        assert layout.filename(image) == layout.filename(tmp_path / image) == Path("out", mask)
    assert Path("out", mask).parent.is_dir()
    assert layout.filename(image, idx=3).name.endswith("_seg_3.nii.gz")


def test_one_image_as_the_data_set(tmp_path: Path):
    (image,) = touch(tmp_path, "A/scan.nii.gz")
    assert OutputLayout(tmp_path, image).plan(image) == {image: tmp_path / "scan_seg.nii.gz"}


def test_radiographs_of_one_name_in_two_sets_stay_apart(tmp_path: Path):
    touch(tmp_path / "data", "A/CXR_png/patient_1.png", "B/CXR_png/patient_1.png")
    layout = OutputLayout(tmp_path, tmp_path / "data", extension=".png")
    planned = layout.plan(image_files(tmp_path / "data", [".png"]))
    assert list(planned.values()) == [tmp_path / f"{x}/patient_1_seg.png" for x in "AB"]


def test_images_of_one_name_are_refused(tmp_path: Path):
    data = tmp_path / "data"
    names = [f"{i:02d}.nii{zipped}" for i in range(22) for zipped in ("", ".gz")]
    touch(data, "other.nii", *names)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError) as refused:
        OutputLayout(out, data).plan(image_files(data))
    message = str(refused.value)
    assert message.startswith(
        f"22 files would be written more than once: {out}/00_seg.nii.gz of {data}/00.nii and of "
        f"{data}/00.nii.gz; "
    )
    assert f"{data}/19.nii.gz; and 2 more; allowed are images of different names" in message
    assert list(out.iterdir()) == []


def test_images_of_one_name_elsewhere_are_refused(tmp_path: Path):
    images = touch(tmp_path, "A/scan.nii", "B/scan.nii")
    with pytest.raises(InputError, match=r"1 file would .*/A/scan\.nii and of .*/B/scan\.nii;"):
        OutputLayout(tmp_path, tmp_path / "data").plan(images)
    channels = [[image, f"{image}_0001"] for image in images]
    assert len(OutputLayout(tmp_path, tmp_path).plan(channels)) == 2


def test_an_image_is_not_replaced_by_a_mask(tmp_path: Path):
    touch(tmp_path, "scan.nii.gz", "scan_seg.nii.gz")
    with pytest.raises(InputError, match=r"1 image would be replaced .*scan_seg\.nii\.gz; allowed"):
        OutputLayout(tmp_path, tmp_path).plan(image_files(tmp_path))


def test_names_that_differ_in_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = touch(tmp_path / "data", "Scan.nii", "scan.nii.gz")
    layout = OutputLayout(tmp_path, tmp_path / "data")
    same = (tmp_path / "data/SCAN.nii").exists()  # on macOS and Windows
    assert outputs._ignores_case(tmp_path) == same
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: False)
    assert len(layout.plan(images)) == 2
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: True)
    with pytest.raises(InputError, match=r"1 file would .*Scan\.nii and of .*scan\.nii\.gz;"):
        layout.plan(images)
