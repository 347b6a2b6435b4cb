import pytest

from common.data.formats import allowed_endings, format_of, name_of


@pytest.mark.parametrize(
    ("file", "name", "base"),
    [
        ("a/b.nii.gz", "NIfTI", "b"),
        ("UPPER.NII.GZ", "NIfTI", "UPPER"),
        ("v1.2.nii", "NIfTI", "v1.2"),
        ("x.Mhd", "MetaImage", "x"),
        ("x.NRRD", "NRRD", "x"),
        ("photo.JPEG", "JPEG", "photo"),
        ("s.TIF", "TIFF", "s"),
    ],
)
def test_names_in_any_case(file: str, name: str, base: str):
    found = format_of(file)
    assert found is not None
    assert (found.name, name_of(file)) == (name, base)


@pytest.mark.parametrize("file", ["notes.txt", "nii", "x.gz", "dataset.json"])
def test_other_files_are_no_images(file: str):
    assert format_of(file) is None
    assert name_of(file) == file


@pytest.mark.parametrize("name", ["series.zip", "1.2.840.DCM", "IM0001.ima"])
def test_dicom_has_names_too(name: str):
    assert format_of(name) is None
    assert name_of(name) == name.rpartition(".")[0]


def test_endings_of_a_sentence():
    assert allowed_endings(3) == ".nii.gz, .nii, .nrrd, .nhdr, .mha and .mhd"
    assert allowed_endings(2).startswith(".png, .jpg")
