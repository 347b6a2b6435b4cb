from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    ScaleIntensityd,
    Spacingd,
)
from PIL import Image

from common.errors import InputError
from common.evaluation import draw_prototypes, write_code_maps
from common.networks import CodebookMambaUNet

PATCH = (32, 32, 16)


@pytest.fixture
def network() -> CodebookMambaUNet:
    torch.manual_seed(0)
    return CodebookMambaUNet(1, widths=(2, 2, 2, 2), num_prototypes=8, prototype_dim=8).eval()


def preprocessing(spacing: float = 1.0) -> Compose:
    return Compose(
        [
            LoadImaged("image", image_only=True),
            EnsureChannelFirstd("image"),
            Orientationd("image", "RAS"),
            Spacingd("image", (spacing,) * 3),
            ScaleIntensityd("image"),
        ]
    )


def write(path: Path, size: tuple[int, ...], affine: np.ndarray) -> Path:
    values = np.random.default_rng(0).normal(size=size).astype(np.float32)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_a_voxel_has_its_sites_code(network: CodebookMambaUNet, tmp_path: Path):
    image = write(tmp_path / "a.nii.gz", (32, 64, 16), np.eye(4))
    path = tmp_path / "a_codes.nii.gz"
    paths, sites = write_code_maps(network, preprocessing(), PATCH, [(str(image), path)])
    assert paths == [path]
    codes = np.asarray(nib.load(path).dataobj)

    x = preprocessing()({"image": image})["image"].as_tensor()[None]
    with torch.no_grad():
        windows = [network.codes(part)[0] for part in x.split(32, dim=3)]
    expected = torch.cat(windows, dim=1).numpy()  # (2, 4, 1)
    np.testing.assert_array_equal(codes, np.kron(expected, np.ones((16, 16, 16))))
    assert len(np.unique(codes)) > 1
    assert sorted(sites.tolist()) == sorted(expected.flatten().tolist())


def test_codes_lie_on_the_images_own_grid(network: CodebookMambaUNet, tmp_path: Path):
    affine = np.array([[0, -1.5, 0, 9], [-1.5, 0, 0, 7], [0, 0, 2.0, -3], [0, 0, 0, 1]])
    image = write(tmp_path / "turned.nii.gz", (40, 21, 19), affine)
    path = tmp_path / "codes.nii.gz"
    write_code_maps(network, preprocessing(2.0), PATCH, [(str(image), path)])
    codes = nib.load(path)
    assert codes.shape == (40, 21, 19)
    np.testing.assert_allclose(codes.affine, affine, atol=1e-5)
    assert codes.get_data_dtype() == np.int16
    assert set(np.unique(codes.dataobj)) <= set(range(8))


def test_all_channels_of_an_image_count(tmp_path: Path):
    torch.manual_seed(0)
    network = CodebookMambaUNet(2, widths=(2, 2, 2, 2), num_prototypes=8, prototype_dim=8).eval()
    files = [str(write(tmp_path / f"a_000{i}.nii.gz", PATCH, np.eye(4))) for i in range(2)]
    path = tmp_path / "codes.nii.gz"
    paths, sites = write_code_maps(network, preprocessing(), PATCH, [(files, path)])
    assert paths == [path]
    assert nib.load(path).shape == PATCH
    x = preprocessing()({"image": files})["image"].as_tensor()[None]
    with torch.no_grad():
        assert sorted(sites.tolist()) == sorted(network.codes(x).flatten().tolist())


def test_where_codes_cannot_be_written(network: CodebookMambaUNet, tmp_path: Path):
    image = write(tmp_path / "a.nii.gz", (32, 32, 16), np.eye(4))
    with pytest.raises(InputError, match=r"a_codes\.nii\.gz cannot be written"):
        write_code_maps(network, preprocessing(), PATCH, [(str(image), image / "a_codes.nii.gz")])


@pytest.mark.parametrize("num_prototypes", [1, 8, 64])
def test_picture_of_prototypes(tmp_path: Path, num_prototypes: int):
    rng = np.random.default_rng(0)
    prototypes = rng.normal(size=(num_prototypes, 64)).astype(np.float32)
    histogram = np.arange(1, num_prototypes + 1)
    file = draw_prototypes(prototypes, histogram, tmp_path / "p.png")
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    blue = (pixels[..., 2] > pixels[..., 0] + 60) & (pixels[..., 2] > pixels[..., 1] + 30)
    assert blue.sum() > 1000  # the bars
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]

    with pytest.raises(InputError, match="cannot be written"):
        draw_prototypes(prototypes, histogram, tmp_path / "no/folder.png")
