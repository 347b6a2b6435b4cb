"""Synthetic data sets: their layout, their anatomy, and that a seed decides every byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from common.data import labelled_cases
from common.data.phantom import CTCase, Tissue, ct_case, cxr_case, mr_case, write_phantom
from common.errors import InputError

SHAPE, SPACING = (64, 54, 36), (5.2, 5.2, 5.6)
COARSE_SHAPE, COARSE_SPACING = (37, 31, 14), (9.2, 9.2, 14.0)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def canonical(path: Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.load(path))


@pytest.fixture(scope="module")
def ct_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("ct"), cases=6, seed=3, size=40, progress=False)


@pytest.fixture(scope="module")
def cxr_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cxr")
    return write_phantom(folder, cases=6, seed=3, kind="cxr", size=96, progress=False)


@pytest.fixture(scope="module")
def patients() -> list[CTCase]:
    return [ct_case(np.random.default_rng(seed), SHAPE, SPACING) for seed in range(6)]


@pytest.mark.parametrize(("kind", "size"), [("ct", 64), ("mr", 24), ("cxr", 64)])
def test_the_seed_decides_every_byte(tmp_path: Path, kind: str, size: int) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_phantom(tmp_path / name, 2, seed, kind, size=size, progress=False)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert not {a[name] for name in a.keys() & c.keys() - {"dataset.json"}} & set(c.values())


@pytest.mark.parametrize(("kind", "size"), [("ct", 40), ("cxr", 96)])
def test_a_case_does_not_depend_on_how_many_there_are(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, size: int
) -> None:
    many = digests(request.getfixturevalue(f"{kind}_folder"))
    few = digests(write_phantom(tmp_path, 2, 3, kind, size, progress=False))
    same = [name for name in few if name != "dataset.json" and "Ts/" not in name]
    assert len(same) == 2 * (2 if kind == "ct" else 3)
    assert all(few[name] == many[name] for name in same)
    if kind == "ct":
        assert few["imagesTs/liver_002.nii.gz"] == many["imagesTs/liver_006.nii.gz"]
        assert few["imagesTs/liver_002.nii.gz"] not in {few[name] for name in same}


def test_ct_has_the_layout_of_the_decathlon(ct_folder: Path) -> None:
    about = json.loads((ct_folder / "dataset.json").read_text())
    assert about["tensorImageSize"] == "3D"
    assert about["modality"] == {"0": "CT"}
    assert about["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert (about["numTraining"], about["numTest"]) == (6, 1)
    assert len(about["training"]) == 6
    assert about["training"][0] == {
        "image": "./imagesTr/liver_000.nii.gz",
        "label": "./labelsTr/liver_000.nii.gz",
    }
    assert about["test"] == ["./imagesTs/liver_006.nii.gz"]
    listed = {Path(path) for case in about["training"] for path in case.values()}
    listed |= {Path(path) for path in about["test"]}
    unlisted = {Path("dataset.json"), Path("labelsTs/liver_006.nii.gz")}
    assert {Path(name) for name in digests(ct_folder)} == listed | unlisted
    assert len(labelled_cases(ct_folder)) == 6


def test_image_and_label_share_a_grid_in_patient_space(ct_folder: Path) -> None:
    for path in sorted(ct_folder.glob("images*/*")):
        image = nib.load(path)
        label = nib.load(path.parents[1] / path.parent.name.replace("images", "labels") / path.name)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == label.shape
        assert set(np.unique(label.dataobj)) == {0, 1, 2}
        for form in (image.get_qform, image.get_sform, label.get_qform, label.get_sform):
            matrix, code = form(coded=True)
            assert code == 1
            np.testing.assert_allclose(matrix, image.affine, atol=1e-3)


def test_headers_vary_and_anatomy_stays_put(ct_folder: Path) -> None:
    headers = [nib.load(path) for path in ct_folder.glob("imagesTr/*")]
    assert len({nib.aff2axcodes(image.affine) for image in headers}) >= 3
    assert len({canonical(Path(i.get_filename())).header.get_zooms() for i in headers}) == 6
    for path in sorted(ct_folder.glob("imagesTr/*")):
        image, label = canonical(path), canonical(ct_folder / "labelsTr" / path.name)
        hu = np.asarray(image.dataobj)

        def centre(mask: np.ndarray, affine: np.ndarray = image.affine) -> np.ndarray:
            return nib.affines.apply_affine(affine, np.argwhere(mask).mean(axis=0))

        body, liver = centre(hu > -200), centre(np.asarray(label.dataobj) > 0)
        spine, lungs = centre(hu > 250), centre(ndimage.binary_opening(hu < -600) & (hu > -900))
        assert liver[0] > body[0] + 20, "the liver is on the right, where RAS x is larger"
        assert spine[1] < body[1] - 10, "the spine is posterior"
        assert lungs[2] > liver[2] + 20, "the lungs are above the liver"


@pytest.mark.parametrize("seed", range(6))
def test_tumours_are_separate_and_in_the_liver_at_any_spacing(seed: int) -> None:
    for shape, spacing in ((SHAPE, SPACING), (COARSE_SHAPE, COARSE_SPACING)):
        case = ct_case(np.random.default_rng(seed), shape, spacing)
        tumours, count = ndimage.label(case.label == 2, np.ones((3, 3, 3)))
        assert 1 <= count <= 5
        assert count == len(case.diameters_mm)
        assert all(5 <= diameter <= 60 for diameter in case.diameters_mm)
        volumes = np.sort(np.bincount(tumours.ravel())[1:])[::-1] * np.prod(spacing)
        spheres = np.pi / 6 * np.array(case.diameters_mm) ** 3
        np.testing.assert_allclose(volumes, spheres, atol=np.prod(spacing))

        assert ndimage.label(case.label > 0)[1] == 1, "liver and tumours are one piece"
        np.testing.assert_array_equal(case.label == 2, case.tissue == Tissue.TUMOUR)
        around = ndimage.binary_dilation(case.label == 2) & (case.label != 2)
        enclosed = np.mean(case.label[around] == 1)
        assert enclosed > (0.6 if spacing is SPACING else 0.3)


def test_tissues_have_their_hounsfield_units(patients: list[CTCase]) -> None:
    expected = {
        Tissue.FAT: (-115, -85),
        Tissue.LUNG: (-900, -760),
        Tissue.LIVER: (80, 140),
        Tissue.SPLEEN: (85, 150),
        Tissue.KIDNEY: (110, 220),
        Tissue.BLOOD: (100, 190),
        Tissue.BONE: (150, 500),
    }
    for case in patients:
        for tissue, (low, high) in expected.items():
            assert low <= np.median(case.hu[case.tissue == tissue]) <= high, tissue.name
        assert np.median(case.hu[case.tissue == Tissue.AIR]) == pytest.approx(-1000, abs=10)
        parenchyma = case.hu[case.tissue == Tissue.LIVER]
        assert 9 < parenchyma.std() < 35
        largest = ndimage.binary_erosion(case.label == 2)
        if largest.any():
            assert case.hu[largest].mean() < parenchyma.mean() - 10


def test_labels_follow_tissues_and_livers_vary(patients: list[CTCase]) -> None:
    volumes = [np.count_nonzero(case.label) * np.prod(SPACING) / 1000 for case in patients]
    assert all(800 < volume < 2000 for volume in volumes)
    assert max(volumes) > 1.2 * min(volumes)
    for case in patients:
        assert case.hu.shape == case.label.shape == case.tissue.shape == SHAPE
        assert set(case.tissue[case.label == 1]) == {Tissue.LIVER, Tissue.BLOOD}


def test_cxr_has_the_layout_of_montgomery(cxr_folder: Path) -> None:
    names = {path.name for path in cxr_folder.glob("CXR_png/*")}
    assert len(names) == 6
    for side in ("left", "right"):
        assert {path.name for path in cxr_folder.glob(f"ManualMask/{side}Mask/*")} == names
    sizes = set()
    for name in sorted(names):
        image = Image.open(cxr_folder / "CXR_png" / name)
        masks = [Image.open(cxr_folder / f"ManualMask/{s}Mask" / name) for s in ("left", "right")]
        assert {image.mode, *(mask.mode for mask in masks)} == {"L"}
        assert {image.size, *(mask.size for mask in masks)} == {image.size}
        assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
        sizes.add(image.size)
    assert len(sizes) > 3
    assert sorted(name.split("_")[1] for name in names) == [f"{i:04d}" for i in range(1, 7)]


def test_lungs_are_dark_apart_and_on_their_sides() -> None:
    opacities = set()
    for seed in range(8):
        case = cxr_case(np.random.default_rng(seed), (96, 88))
        column = np.arange(88)
        left, right = ((mask.sum(axis=0) @ column) / mask.sum() for mask in (case.left, case.right))
        assert left > 44 > right, "the patient's right is at the left of the image"
        assert not (case.left & case.right).any()
        assert all(ndimage.label(mask)[1] == 1 for mask in (case.left, case.right))
        assert all(0.05 < mask.mean() < 0.3 for mask in (case.left, case.right))
        mediastinum = case.image[40:70, 40:48].mean()
        assert case.image[case.left | case.right].mean() < mediastinum - 50
        opacities.add(case.opacities > 0)
    assert opacities == {True, False}


def test_mr_has_the_layout_of_the_decathlon(tmp_path: Path) -> None:
    folder = write_phantom(tmp_path, 3, kind="mr", progress=False)
    about = json.loads((folder / "dataset.json").read_text())
    assert about["labels"] == {"0": "background", "1": "anterior", "2": "posterior"}
    names = {f"hippocampus_{number:03d}.nii.gz" for number in range(3)}
    for part in ("imagesTr", "labelsTr"):
        assert {path.name for path in (folder / part).iterdir()} == names
        assert (folder / part.replace("Tr", "Ts") / "hippocampus_003.nii.gz").is_file()
    for name in sorted(names):
        image, label = (nib.load(folder / part / name) for part in ("imagesTr", "labelsTr"))
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        np.testing.assert_array_equal(image.affine, label.affine)
        assert all(30 < n < 60 for n in image.shape)
        assert image.header.get_zooms() == pytest.approx([1, 1, 1], abs=0.021)
    assert len(labelled_cases(folder)) == 3


@pytest.mark.parametrize("seed", range(6))
def test_a_hippocampus_has_a_head_in_front(seed: int) -> None:
    """Of the size of a hippocampus, grey, one piece, and within the field of view."""
    spacing = (1.0, 1.0, 1.0)
    case = mr_case(np.random.default_rng(seed), (36, 50, 36), spacing)
    anterior, posterior = case.label == 1, case.label == 2
    assert all(ndimage.label(part)[1] == 1 for part in (anterior, posterior, case.label > 0))
    assert 1500 < np.count_nonzero(case.label) < 5000
    assert 0.3 < np.count_nonzero(anterior) / np.count_nonzero(case.label) < 0.7
    assert np.argwhere(anterior)[:, 1].mean() > np.argwhere(posterior)[:, 1].mean() + 10
    inner = ndimage.binary_erosion(case.label > 0)
    white = np.percentile(case.image, 90)
    assert 0.5 < case.image[inner].mean() / white < 0.85
    edges = case.label.copy()
    edges[1:-1, 1:-1, 1:-1] = 0
    assert not edges.any()


def test_an_earlier_phantom_is_replaced_without_a_trace(tmp_path: Path) -> None:
    folder, fresh = tmp_path / "used", tmp_path / "fresh"
    write_phantom(folder, 3, kind="cxr", size=64, progress=False)
    write_phantom(folder, 2, kind="mr", size=24, progress=False)
    write_phantom(folder, 3, seed=1, size=32, progress=False)
    (folder / ".phantom-unfinished").touch()
    (folder / "imagesTr" / ".17.liver_000.nii.gz").touch()
    (folder / "notes.txt").write_text("mine")
    write_phantom(folder, 1, size=32, progress=False)
    write_phantom(fresh, 1, size=32, progress=False)
    assert (folder / "notes.txt").read_text() == "mine"
    assert digests(folder).keys() - {"notes.txt"} == digests(fresh).keys()


@pytest.mark.parametrize("content", ['{"name": "Liver"}', "[]", "{", '{"name": []}'])
def test_other_data_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"output .* holds other data; allowed is a new"):
        write_phantom(tmp_path, 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
    assert (tmp_path / "dataset.json").read_text() == content


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, "cases is 0; allowed are whole numbers from 1"),
        ({"cases": 2.5}, "cases is 2.5"),
        ({"cases": True}, "cases is True"),
        ({"seed": -1}, "seed is -1; allowed are whole numbers from 0"),
        ({"size": 31}, "size is 31; allowed are whole numbers from 32 to 512"),
        ({"size": 23, "kind": "mr"}, "size is 23; allowed are whole numbers from 24 to 256"),
        ({"size": 63, "kind": "cxr"}, "size is 63; allowed are whole numbers from 64 to 2048"),
        ({"kind": "mri"}, "kind is 'mri'; allowed are 'ct', 'mr' and 'cxr'"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_phantom(tmp_path / "new", **arguments, progress=False)
    assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_a_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match=r"file is a file; allowed is a folder"):
        write_phantom(file, progress=False)
    with pytest.raises(InputError, match=r"cannot be written to \(Not a directory\)"):
        write_phantom(file / "below", progress=False)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot be written to \(No space left on device\)"):
        write_phantom(tmp_path / "new", 1, size=32, progress=False)


def test_grids_that_hold_no_patient_are_named() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="cover 240 x 180 x 120 mm"):
        ct_case(rng, (32, 32, 16), (3, 3, 5))
    with pytest.raises(InputError, match="at most 16 mm"):
        ct_case(rng, (16, 16, 10), (20, 20, 20))
    with pytest.raises(InputError, match="cover 32 x 46 x 32 mm"):
        mr_case(rng, (36, 40, 36), (1, 1, 1))
    with pytest.raises(InputError, match=r"shape is \(40, 90\)"):
        cxr_case(rng, (40, 90))
