import logging
from pathlib import Path

import pytest

from common.data import OutputLayout, check_output_folder, image_files, outputs
from common.errors import InputError

from ..conftest import read_only
from .conftest import Touch


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
        ("data/UPPER.NII.GZ", "UPPER_seg.nii.gz"),
        ("data/v1.2.nrrd", "v1.2_seg.nii.gz"),
        ("data/imagesTs/case_0000.nii.gz", "case_seg.nii.gz"),  # the first of its channels
        ("data/_0000.nii.gz", "_0000_seg.nii.gz"),  # of no image's name
        ("data/scan_2019.nii.gz", "scan_2019_seg.nii.gz"),
        ("data/test_images/scan.nii", "scan_seg.nii.gz"),
        ("data/test/images/scan.nii", "test/scan_seg.nii.gz"),
        ("data/patient/1.2.840.113", "patient/1.2.840.113_seg.nii.gz"),  # a DICOM series
        ("data/scan.zip", "scan_seg.nii.gz"),
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


@pytest.mark.parametrize("name", ["scan", "scan_0000", "scan_0001"])
def test_one_image_as_the_data_set(touch: Touch, tmp_path: Path, name: str):
    image = str(touch(f"A/{name}.nii.gz") / f"A/{name}.nii.gz")
    assert OutputLayout(tmp_path, image).plan(image) == {image: tmp_path / f"{name}_seg.nii.gz"}


def test_channels_have_one_mask(touch: Touch, tmp_path: Path):
    data = touch(*(f"{x}_000{i}.nii.gz" for x in "ab" for i in (0, 1)), root=tmp_path / "data")
    planned = OutputLayout(tmp_path, data).plan(image_files(data))
    assert list(planned.values()) == [tmp_path / "a_seg.nii.gz", tmp_path / "b_seg.nii.gz"]


def test_radiographs_of_one_name_in_two_sets_stay_apart(touch: Touch, tmp_path: Path):
    touch("data/A/CXR_png/patient_1.png", "data/B/CXR_png/patient_1.png")
    layout = OutputLayout(tmp_path, tmp_path / "data", extension=".png")
    planned = layout.plan(image_files(tmp_path / "data", 2))
    assert list(planned.values()) == [tmp_path / f"{x}/patient_1_seg.png" for x in "AB"]


def test_images_of_one_name_are_refused(touch: Touch, tmp_path: Path):
    names = [f"{i:02d}.nii{zipped}" for i in range(22) for zipped in ("", ".gz")]
    data = touch("other.nii", *names, root=tmp_path / "data")
    with pytest.raises(InputError) as refused:
        image_files(data)
    message = str(refused.value)
    assert message.startswith(f"{data}/00.nii and {data}/00.nii.gz; {data}/01.nii and ")
    assert f"{data}/19.nii.gz; and 2 more are of one name; allowed is one of them." in message


def test_images_of_one_name_elsewhere_are_refused(touch: Touch, tmp_path: Path):
    touch("A/scan.nii", "B/scan.nii")
    images = [str(tmp_path / name) for name in ("A/scan.nii", "B/scan.nii")]
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"1 file would .*/A/scan\.nii and of .*/B/scan\.nii;"):
        OutputLayout(tmp_path / "out", tmp_path / "data").plan(images)
    assert list((tmp_path / "out").iterdir()) == []
    channels = [[image, f"{image}_0001"] for image in images]
    assert len(OutputLayout(tmp_path, tmp_path).plan(channels)) == 2


def test_an_image_is_not_replaced_by_a_mask(touch: Touch, tmp_path: Path):
    touch("scan.nii.gz", "scan_seg.nii.gz")
    with pytest.raises(InputError, match=r"1 image would be replaced .*scan_seg\.nii\.gz; allowed"):
        OutputLayout(tmp_path, tmp_path).plan(image_files(tmp_path))


def test_names_that_differ_in_case(touch: Touch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch("data/Scan.nii", "data/scan.nii.gz")
    images = [str(tmp_path / "data" / name) for name in ("Scan.nii", "scan.nii.gz")]
    layout = OutputLayout(tmp_path, tmp_path / "data")
    same = (tmp_path / "data/SCAN.nii").exists()  # on macOS and Windows
    assert outputs._ignores_case(tmp_path) == same
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: False)
    assert len(layout.plan(images)) == 2
    monkeypatch.setattr(outputs, "_ignores_case", lambda folder: True)
    with pytest.raises(InputError, match=r"1 file would .*Scan\.nii and of .*scan\.nii\.gz;"):
        layout.plan(images)


def test_output_folder(tmp_path: Path):
    check_output_folder(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output folder .*file cannot be written to"):
        check_output_folder(tmp_path / "file")


@read_only
def test_read_only_output_folder(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written to"):
        check_output_folder(tmp_path)


def test_files_that_are_there_may_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    images: list = [str(tmp_path / "a.nii"), [str(tmp_path / f"b_000{i}.nii") for i in range(2)]]
    layout = OutputLayout(tmp_path, tmp_path)
    assert layout.todo(images, overwrite=False) == images
    (tmp_path / "b_seg.nii.gz").touch()
    with caplog.at_level(logging.INFO):
        assert layout.todo(images, overwrite=False) == images[:1]
    assert "1 of 2 files are there already" in caplog.text
    assert layout.todo(images, overwrite=True) == images


def test_what_a_link_would_replace_is_seen(tmp_path: Path):
    """An output folder by another name is the images' own folder all the same."""
    data = tmp_path / "data"
    data.mkdir()
    images = [str(data / name) for name in ("a.nii.gz", "a_seg.nii.gz")]
    for image in images:
        Path(image).touch()
    (tmp_path / "other").symlink_to(data)
    with pytest.raises(InputError, match=r"1 image would be replaced.*a_seg\.nii\.gz"):
        OutputLayout(tmp_path / "other", data).plan(images)


def test_links_and_folders_are_found_before_the_run(tmp_path: Path):
    (tmp_path / "a_seg.nii.gz").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "b_seg.nii.gz").mkdir()
    images = [str(tmp_path / f"{name}.nii.gz") for name in "abc"]
    with pytest.raises(InputError, match=r"a_seg.*b_seg.* cannot be written: a link, a folder"):
        OutputLayout(tmp_path, tmp_path).plan(images)


def test_overwrite_is_true_or_false(tmp_path: Path):
    with pytest.raises(InputError, match="overwrite is 'false'; allowed are True and False"):
        OutputLayout(tmp_path, tmp_path).todo([], "false")  # type: ignore[arg-type]


def test_masks_that_cannot_be_written_are_found_before_the_run(touch: Touch, tmp_path: Path):
    """A name of more bytes than the file system allows, and a file where a folder has to be."""
    good, long, deep = (f"data/{x}.nii.gz" for x in ("a", "ä" * 124, f"B/{'b' * 247}"))
    data = touch(good, long, deep, "data/C/c.nii.gz", root=tmp_path) / "data"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/C").touch()
    layout = OutputLayout(tmp_path / "out", data)
    with pytest.raises(InputError) as refused:
        layout.plan([str(tmp_path / file) for file in (good, long, deep, "data/C/c.nii.gz")])
    sentence = str(refused.value)
    assert sentence.startswith(f"{tmp_path}/out/ää")
    assert "_seg.nii.gz (File name too long); " in sentence
    assert f"{'b' * 247}_seg.nii.gz (File name too long); " in sentence
    assert f"{tmp_path}/out/C/c_seg.nii.gz (Not a directory) cannot be written" in sentence
    assert "a_seg" not in sentence
