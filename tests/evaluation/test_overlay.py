import io
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from common.errors import InputError
from common.evaluation import dice_per_class, draw_overlay
from common.evaluation.overlay import Scene, _kinds, box_around, colour_of, draw_errors
from common.evaluation.renderings import _TRANSLUCENT, _surface, draw_surfaces, opacity_of


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> dict[str, Path]:
    label = np.zeros((20, 24, 12), np.uint8)
    label[4:12, 4:12, 2:10] = 1
    label[6:8, 6:8, 4:6] = 2
    prediction = label.copy()
    prediction[4:8, 4:12, 2:10] = 0  # half of the liver, and the tumour, missed
    image = np.random.default_rng(0).normal(40, 20, label.shape).astype(np.float32)
    return {
        name: write(tmp_path / f"{name}.nii.gz", values)
        for name, values in (("image", image), ("label", label), ("prediction", prediction))
    }


def test_dice(maps: dict[str, Path]):
    liver, found, both = 8 * 8 * 8 - 8, 4 * 8 * 8, 4 * 8 * 8
    scores = dice_per_class(maps["prediction"], maps["label"])
    assert scores == {1: pytest.approx(2 * both / (liver + found)), 2: 0.0}
    assert dice_per_class(maps["label"], maps["label"]) == {1: 1.0, 2: 1.0}


def test_class_that_neither_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[0, 0, 0] = 2
    file = write(tmp_path / "a.nii.gz", values)
    scores = dice_per_class(file, file)
    assert math.isnan(scores[1])
    assert scores[2] == 1


def test_class_that_the_prediction_alone_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    label = write(tmp_path / "label.nii.gz", values)
    values[0, 0, 0] = 1
    assert dice_per_class(write(tmp_path / "prediction.nii.gz", values), label) == {1: 0.0}


def test_picture_shows_both_contours(maps: dict[str, Path], tmp_path: Path):
    file = draw_overlay(maps["image"], maps["prediction"], tmp_path / "o.png", maps["label"])
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert pixels.shape[1] > 1000
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    assert ((green > red + 60) & (green > blue + 30)).sum() > 100  # liver
    assert ((red > green + 60) & (blue > green + 30)).sum() > 20  # tumour, in the label alone
    assert [p.name for p in tmp_path.glob("*.png")] == ["o.png"]


def test_orientation_does_not_change_the_picture(maps: dict[str, Path], tmp_path: Path):
    folder = tmp_path / "turned"  # of the same names, which the pictures show
    folder.mkdir()
    turned = {}
    for name, file in maps.items():
        image = nib.load(file)
        lps = np.diag([-1.0, -1.0, 2.0, 1.0])
        lps[:2, 3] = (np.array(image.shape[:2]) - 1) * 1.0
        turned[name] = write(folder / file.name, np.asarray(image.dataobj)[::-1, ::-1], lps)
    pictures = [
        np.asarray(Image.open(draw_overlay(m["image"], m["prediction"], tmp_path / f"{i}.png")))
        for i, m in enumerate((maps, turned))
    ]
    np.testing.assert_array_equal(*pictures)


def test_bad_files_are_named(maps: dict[str, Path], tmp_path: Path):
    other = write(tmp_path / "other.nii.gz", np.zeros((5, 5, 5), np.uint8))
    with pytest.raises(InputError, match=r"prediction\.nii\.gz of size .* not on the grid of"):
        draw_overlay(other, maps["prediction"], tmp_path / "o.png")
    moved = write(tmp_path / "moved.nii.gz", np.asarray(nib.load(maps["label"]).dataobj), np.eye(4))
    with pytest.raises(InputError, match="is not on the grid of"):
        dice_per_class(maps["prediction"], moved)
    with pytest.raises(InputError, match=r"missing\.nii cannot be read"):
        dice_per_class(tmp_path / "missing.nii", maps["label"])
    with pytest.raises(InputError, match="cannot be written"):
        draw_overlay(maps["image"], maps["prediction"], tmp_path / "no/such/folder.png")


def test_radiographs(tmp_path: Path):
    """One upright picture; the grey levels of a mask are its classes."""
    rows = np.zeros((40, 60), np.uint8)
    rows[5:15, 5:20] = 255  # top left
    other = np.where(np.arange(60) < 12, rows, 0)
    noise = np.random.default_rng(0).integers(0, 9000, rows.shape, np.uint16)
    files = {}
    for name, values in (("image", noise), ("label", rows), ("prediction", other // 255)):
        files[name] = tmp_path / f"{name}.png"
        Image.fromarray(values).save(files[name])
    both, found, lung = 10 * 7, 10 * 7, 10 * 15
    dice = dice_per_class(files["prediction"], files["label"])
    assert dice == {1: pytest.approx(2 * both / (found + lung))}

    file = draw_overlay(files["image"], files["label"], tmp_path / "o.png")
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    picture = pixels[: int(0.9 * len(pixels))]  # the legend is below
    green = (picture[..., 1] > picture[..., 0] + 60) & (picture[..., 1] > picture[..., 2] + 30)
    height, width = green.shape
    row, column = np.argwhere(green).mean(axis=0)
    assert 0.1 < column / width < 0.35
    assert row < height / 2
    assert pixels[height // 2].max() > 200, "a radiograph is shown at its own contrast"

    Image.fromarray(rows[1:]).save(tmp_path / "other.png")
    with pytest.raises(InputError, match="is not on the grid of"):
        dice_per_class(tmp_path / "other.png", files["label"])


def test_a_jpeg_is_no_mask(tmp_path: Path):
    files = [tmp_path / name for name in ("image.jpg", "mask.jpg", "mask.png")]
    for file in files:
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(file)
    with pytest.raises(InputError, match=r"mask\.jpg is a JPEG, which does not keep values"):
        dice_per_class(files[1], files[2])
    assert draw_overlay(files[0], files[2], tmp_path / "o.png").is_file()


def test_a_name_with_dollars(maps: dict[str, Path], tmp_path: Path):
    """matplotlib takes what is between two for a formula."""
    image = maps["image"].rename(tmp_path / "a$_$.nii.gz")
    assert draw_overlay(image, maps["prediction"], tmp_path / "o.png").is_file()


def test_an_image_with_nan_is_shown(maps: dict[str, Path], tmp_path: Path):
    values = nib.load(maps["image"]).get_fdata(dtype=np.float32)
    values[0] = np.nan
    image = write(tmp_path / "nan.nii.gz", values)
    file = draw_overlay(image, maps["prediction"], tmp_path / "o.png", window=None)
    assert np.asarray(Image.open(file).convert("L"))[:300].std() > 20


def test_a_volume_of_one_slice(tmp_path: Path):
    values = np.zeros((20, 24, 1), np.uint8)
    values[4:12, 4:12] = 1
    file = write(tmp_path / "a.nii.gz", values)
    pixels = np.asarray(Image.open(draw_overlay(file, file, tmp_path / "o.png")).convert("RGB"))
    assert pixels.shape[1] < 1000, "one plane"


@pytest.mark.slow
def test_other_formats_of_volumes(maps: dict[str, Path], tmp_path: Path):
    pytest.importorskip("itk")
    values = np.asarray(nib.load(maps["label"]).dataobj)
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nElementSpacing = 1 1 2\n"
    # In LPS, as the affine of the others is in RAS.
    head += "TransformMatrix = -1 0 0 0 -1 0 0 0 1\nOffset = 0 0 0\n"
    head += f"DimSize = {' '.join(map(str, values.shape))}\n"
    head += "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    file = tmp_path / "label.mha"
    file.write_bytes(head.encode() + values.tobytes(order="F"))
    assert dice_per_class(file, maps["label"]) == {1: 1.0, 2: 1.0}


def test_the_first_channel_of_an_image_is_shown(maps: dict[str, Path], tmp_path: Path):
    values = np.asarray(nib.load(maps["image"]).dataobj)
    (tmp_path / "two").mkdir()
    two = write(tmp_path / "two/image.nii.gz", np.stack([values, values * 0], -1))
    pictures = [
        np.asarray(Image.open(draw_overlay(image, maps["prediction"], tmp_path / "o.png")))
        for image in (maps["image"], two)
    ]
    np.testing.assert_array_equal(*pictures)
    with pytest.raises(InputError, match=r"two/image\.nii\.gz has 4 axes; allowed are 3"):
        draw_overlay(maps["image"], two, tmp_path / "o.png")


def test_twenty_classes_have_colours_of_their_own(tmp_path: Path):
    colours = [colour_of(number) for number in range(1, 21)]
    assert len(set(colours)) == 20
    assert colour_of(21) == colours[0]
    values = np.zeros((22, 6, 6), np.uint8)
    values[1:-1, 1:-1, 1:-1] = np.arange(1, 21)[:, None, None]
    file = write(tmp_path / "a.nii.gz", values)
    pixels = np.asarray(Image.open(draw_overlay(file, file, tmp_path / "o.png")).convert("RGB"))
    legend = pixels[int(0.85 * len(pixels)) :].reshape(-1, 3)
    for colour in colours:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (legend == rgb).all(-1).sum() > 20, colour


def drawn(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def places(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Columns, from 0 to 1, of what is nearly of a colour, above the legend."""
    picture = pixels[: int(0.9 * len(pixels))]
    return np.argwhere(np.abs(picture - colour).max(-1) < 40)[:, 1] / pixels.shape[1]


def test_errors_of_predictions():
    label = np.zeros((30, 30, 12), np.int32)
    label[6:24, 6:24, 2:10] = 1
    good, bad = label.copy(), label.copy()
    bad[20:24, 6:24, 2:10] = 0  # at the patient's right is missed, which is at the left
    bad[2:6, 6:24, 2:10] = 1  # at the left is false
    scene = Scene(label * 1.0, {"label": label, "A": good, "B": bad}, (1.0, 1.0, 1.0), False)
    pixels = drawn(draw_errors(scene, {"A": "A", "B": "B"}, {"liver": [1]}))
    missed, false = (places(pixels, rgb) for rgb in ((0xD5, 0x5E, 0x00), (0x56, 0xB4, 0xE9)))
    assert len(missed) > 100
    assert len(false) > 100
    assert missed.min() > 0.75, "the last panel's alone"
    assert false.min() > 0.75
    assert np.median(missed) < np.median(false)
    green = places(pixels, (0x80, 0xCE, 0xB9))  # on white
    assert ((green > 0.25) & (green < 0.5)).any(), "the label's panel"


def test_a_tumour_is_not_painted_as_liver_too():
    label = np.full((30, 30, 12), 2, np.int32)
    scene = Scene(label * 0.0, {"label": label, "A": label}, (1.0, 1.0, 1.0), False)
    pixels = drawn(draw_errors(scene, {"A": "A"}, {"liver": [1, 2], "tumour": [2]}))
    on_black = np.abs(pixels - (0x66, 0x3C, 0x53)).max(-1) < 4  # half of its colour
    assert on_black.sum() > 1000


def test_kinds_of_errors_where_classes_overlap():
    classes = {"liver": [1, 2], "tumour": [2]}
    label = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    prediction = np.array([0, 2, 1, 2, 2, 1, 0, 0])
    names = {0: "-", 1: "right", 2: "missed", 3: "false", 4: "another"}
    assert [names[x] for x in _kinds(label, prediction, classes).tolist()] == [
        *("-", "false", "right", "false", "right", "missed", "missed", "-"),
    ]
    apart = {"left": [1], "right": [2]}
    assert _kinds(np.array([1]), np.array([2]), apart).tolist() == [4]


def test_what_is_shown_reaches_around_what_is_segmented():
    classes = np.zeros((100, 200, 40), np.int32)
    classes[40:60, 0:150, 20] = 1
    box = box_around([classes * 0, classes])
    ends = ((40, 59), (0, 149), (20, 20))
    for part, (first, last), size in zip(box, ends, classes.shape, strict=True):
        assert 0 <= part.start <= first
        assert last < part.stop <= size
        assert part.stop - part.start >= min(size, 30)
    assert box[0].stop - box[0].start < 40
    assert box_around([classes * 0]) == (slice(0, 100), slice(0, 200), slice(0, 40))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (4.0, 4.0, 4.0), (0.1, 0.1, 0.1)])
def test_surfaces_are_where_masks_are(spacing: tuple[float, float, float]):
    mask = np.zeros((40, 44, 30), bool)
    mask[8:30, 6:40, 5:25] = True
    triangles = _surface(mask, spacing)
    steps = np.array(spacing)
    found = triangles.reshape(-1, 3)
    np.testing.assert_allclose(found.min(0), [8, 6, 5] * steps, atol=0.6 * max(spacing))
    np.testing.assert_allclose(found.max(0), [30, 40, 25] * steps, atol=0.6 * max(spacing))
    a, b, c = triangles.transpose(1, 0, 2)
    volume = abs((a * np.cross(b, c)).sum() / 6)
    assert volume == pytest.approx(mask.sum() * np.prod(spacing), rel=0.05)
    assert not len(_surface(mask & False, spacing))


def test_surfaces_of_many_voxels_are_coarse():
    mask = np.zeros((300, 200, 100), bool)
    mask[10:290, 10:190, 10:90] = True
    assert 1000 < len(_surface(mask, (1.0, 1.0, 1.0))) < 20_000


def test_surfaces():
    label = np.zeros((30, 30, 20), np.int32)
    label[6:24, 6:24, 2:18] = 1
    label[10:16, 10:16, 8:12] = 2
    maps = {"label": label, "A": np.where(label == 2, 1, label), "B": label * 0}
    scene = Scene(label * 1.0, maps, (1.0, 1.0, 1.0), False)
    classes = {"liver": [1, 2], "tumour": [2]}
    assert opacity_of([label > 0, label == 2]) == [_TRANSLUCENT, 1.0]
    assert opacity_of([label == 2, label == 5]) == [1.0, 1.0]
    pixels = drawn(draw_surfaces(scene, {"A": "A", "B": "B"}, classes))
    coloured = np.ptp(pixels[: int(0.9 * len(pixels))], axis=-1) > 15
    thirds = [part.sum() for part in np.array_split(coloured, 3, axis=1)]
    assert thirds[0] > 1000
    assert thirds[1] == pytest.approx(thirds[0], rel=0.1), "of one scale"
    assert thirds[2] == 0, "it has nothing"
