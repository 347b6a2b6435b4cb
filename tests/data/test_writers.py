from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Orientationd,
    SaveImage,
    SaveImaged,
    Spacingd,
)
from PIL import Image

from common.data import AtomicNibabelWriter, AtomicPILWriter
from common.errors import InputError
from common.transforms import LoadCheckedImaged

SFORM = nib.affines.from_matvec(np.diag([-2.0, 2.0, 3.0]), [10, 20, 30])
QFORM = nib.affines.from_matvec(np.diag([2.0, 2.0, 3.0]), [-7, 8, 9])


def save(folder: Path, classes: torch.Tensor, num_classes: int) -> Path:
    """Save a map (columns, rows) of classes as the bundles do."""

    def writer(**kwargs: object) -> AtomicPILWriter:
        return AtomicPILWriter(num_classes, **kwargs)

    SaveImage(folder, "seg", ".png", np.uint8, separate_folder=False, writer=writer)(
        MetaTensor(classes[None].float(), meta={"filename_or_obj": "chest.png"})
    )
    return folder / "chest_seg.png"


def test_classes_are_grey_levels_in_rows_and_columns(tmp_path: Path):
    classes = torch.zeros(5, 3, dtype=torch.long)
    classes[4, 0] = 1  # top right
    image = Image.open(save(tmp_path, classes, 2))
    assert (image.mode, image.size) == ("L", (5, 3))
    np.testing.assert_array_equal(image, [[0, 0, 0, 0, 255], [0] * 5, [0] * 5])


def test_more_classes_are_spread_evenly(tmp_path: Path):
    for num_classes, levels in ((3, [0, 128, 255]), (4, [0, 85, 170, 255])):
        classes = torch.arange(num_classes)[:, None].expand(-1, 2)
        image = np.asarray(Image.open(save(tmp_path, classes, num_classes)))
        assert image.tolist() == [levels, levels]
    assert len(set(AtomicPILWriter(256).levels)) == 256


def test_bad_number_of_classes_is_named():
    for wrong in (1, 257):
        with pytest.raises(ValueError, match=f"num_classes is {wrong}; allowed are 2 to 256"):
            AtomicPILWriter(wrong)


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = save(tmp_path, torch.eye(4), 2).read_bytes()

    def full(self: Image.Image, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RuntimeError, match="No space left on device"):
        save(tmp_path, torch.zeros(4, 4), 2)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("chest_seg.png", before)
    ]


def test_a_link_or_a_folder_in_the_masks_place_is_left(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("the user's")
    writer = AtomicPILWriter(2)
    writer.set_data_array(np.zeros((1, 4, 4)))
    (tmp_path / "link.png").symlink_to(victim)
    (tmp_path / "folder.png").mkdir()
    for name in ("link.png", "folder.png"):
        with pytest.raises(InputError, match=f"The mask .*{name} cannot be written"):
            writer.write(tmp_path / name)
    assert victim.read_text() == "the user's"


def mask_of(image: Path) -> nib.Nifti1Image:
    """A mask as the bundles make and save it, of an image resampled and back."""
    before = Compose(
        [
            LoadCheckedImaged("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (2.5, 2.0, 2.0)),
        ]
    )
    [case] = decollate_batch(next(iter(DataLoader(Dataset([{"image": str(image)}], before)))))
    case["pred"] = (case["image"] > 0.5).float()
    after = Compose(
        [
            Invertd("pred", before, orig_keys="image", nearest_interp=True),
            SaveImaged(
                "pred",
                output_dir=image.parent / "masks",
                output_dtype="uint8",
                resample=False,
                separate_folder=False,
                writer=AtomicNibabelWriter,
            ),
        ]
    )
    after(case)
    name = image.name.removesuffix(".gz").removesuffix(image.suffix).removesuffix(".nii")
    return nib.load(image.parent / f"masks/{name}_trans.nii.gz")


VOXELS = np.random.default_rng(0).random((8, 9, 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("sform_code", "qform_code"), [(1, 1), (2, 1), (4, 2), (1, 0), (0, 1), (0, 0)]
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_masks_have_their_images_forms(tmp_path: Path, kind, sform_code: int, qform_code: int):
    image = kind(VOXELS, np.eye(4))
    image.set_sform(SFORM, sform_code)
    image.set_qform(QFORM, qform_code)
    image.header.set_xyzt_units("mm", "sec")
    file = tmp_path / "image.nii.gz"
    kind(VOXELS, None, image.header).to_filename(file)
    image, mask = nib.load(file), mask_of(file)
    np.testing.assert_allclose(mask.affine, image.affine, atol=1e-5)
    for form in ("get_sform", "get_qform"):
        (matrix, code), (expected, expected_code) = (
            getattr(i, form)(coded=True) for i in (mask, image)
        )
        assert code == expected_code
        if code:
            np.testing.assert_allclose(matrix, expected, atol=1e-5)
    np.testing.assert_array_equal(mask.header["pixdim"][:4], image.header["pixdim"][:4])
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    assert (mask.shape, mask.get_data_dtype()) == (image.shape, np.uint8)


def test_masks_on_another_grid_have_forms_of_their_own(tmp_path: Path):
    image = nib.Nifti1Image(VOXELS, SFORM)
    image.set_qform(QFORM, 1)
    nib.save(image, tmp_path / "image.nii.gz")
    loaded = LoadCheckedImaged("image")({"image": str(tmp_path / "image.nii.gz")})["image"]
    loaded.affine = torch.eye(4)
    save = SaveImage(tmp_path, resample=False, separate_folder=False, writer=AtomicNibabelWriter)
    save(loaded[None])
    mask = nib.load(tmp_path / "image_trans.nii.gz")
    for matrix, code in (mask.get_sform(coded=True), mask.get_qform(coded=True)):
        np.testing.assert_array_equal(matrix, np.eye(4))
        assert code == 1


def test_masks_of_other_formats_have_both_forms(tmp_path: Path):
    itk = pytest.importorskip("itk", reason="needs the extra formats")
    image = itk.image_from_array(np.ascontiguousarray(VOXELS.T))
    image.SetSpacing([2.0, 2.0, 3.0])
    itk.imwrite(image, str(tmp_path / "image.nrrd"))
    mask = mask_of(tmp_path / "image.nrrd")
    for matrix, code in (mask.get_sform(coded=True), mask.get_qform(coded=True)):
        np.testing.assert_allclose(matrix, np.diag([-2.0, -2.0, 3.0, 1.0]), atol=1e-6)
        assert code == 1
