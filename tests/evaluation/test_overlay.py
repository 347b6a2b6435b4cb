import io
import itertools
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from common.errors import InputError
from common.evaluation import dice_per_class, draw_overlay
from common.evaluation.label_maps import read_segmentation
from common.evaluation.overlay import _overlay, draw_errors
from common.evaluation.renderings import _TRANSLUCENT, _surface, draw_surfaces, opacity_of
from common.evaluation.scenes import (
    ERRORS,
    Scene,
    box_around,
    colour_of,
    kinds_of,
    load_scene,
)


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
    assert scores == {"class 1": pytest.approx(2 * both / (liver + found)), "class 2": 0.0}
    assert dice_per_class(maps["label"], maps["label"]) == {"class 1": 1.0, "class 2": 1.0}
    whole = dice_per_class(maps["prediction"], maps["label"], {"whole": [1, 2]})
    assert whole == {"whole": pytest.approx(2 * both / (liver + 8 + found))}


def test_classes_have_the_names_of_dataset_json(maps: dict[str, Path], tmp_path: Path):
    """Of the folder above the label's; a value that it does not name keeps its number."""
    labels = {"background": 0, "liver": 1}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    (tmp_path / "labelsTr").mkdir()
    label = maps["label"].rename(tmp_path / "labelsTr/a.nii.gz")
    assert list(dice_per_class(maps["prediction"], label)) == ["liver", "class 2"]
    assert list(dice_per_class(maps["prediction"], label, {"x": 2})) == ["x"]


def test_class_that_neither_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    values[0, 0, 0] = 2
    file = write(tmp_path / "a.nii.gz", values)
    scores = dice_per_class(file, file, {"liver": 1, "tumour": 2})
    assert math.isnan(scores["liver"])
    assert scores["tumour"] == 1
    assert dice_per_class(file, file) == {"class 2": 1}


def test_class_that_the_prediction_alone_has(tmp_path: Path):
    values = np.zeros((4, 4, 4), np.uint8)
    label = write(tmp_path / "label.nii.gz", values)
    values[0, 0, 0] = 1
    assert dice_per_class(write(tmp_path / "prediction.nii.gz", values), label) == {"class 1": 0.0}


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
    with pytest.raises(InputError) as raised:
        draw_overlay(other, maps["prediction"], tmp_path / "o.png")
    assert str(raised.value) == (
        f"The prediction {maps['prediction']} has the size 20 x 24 x 12, its image {other} 5 x 5 x "
        "5; allowed is the image's."
    )
    moved = write(tmp_path / "moved.nii.gz", np.asarray(nib.load(maps["label"]).dataobj), np.eye(4))
    with pytest.raises(InputError, match="voxels apart; allowed is the label's place, within"):
        dice_per_class(maps["prediction"], moved)
    with pytest.raises(InputError, match=r"classes is 'liver'; allowed is \{name: value or"):
        dice_per_class(maps["prediction"], maps["label"], "liver")
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
    assert dice == {"class 1": pytest.approx(2 * both / (found + lung))}

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
    with pytest.raises(InputError, match=r"other\.png has the size 60 x 39, its label .* 60 x 40;"):
        dice_per_class(tmp_path / "other.png", files["label"])


def test_grey_levels_of_pictures_are_the_classes_of_all(tmp_path: Path):
    """255 is the second class where the other picture has 128, too."""
    label = np.zeros((9, 12), np.uint8)
    label[2:5, 2:9], label[6:8, 2:9] = 128, 255
    files = []
    for name, values in (("label", label), ("prediction", np.where(label == 255, label, 0))):
        files.append(tmp_path / f"{name}.png")
        Image.fromarray(values.astype(np.uint8)).save(files[-1])
    assert dice_per_class(files[1], files[0]) == {"class 1": 0.0, "class 2": 1.0}
    assert dice_per_class(files[0], files[0], {"a": 2}) == {"a": 1.0}
    with pytest.raises(InputError, match="has the values 0; 128; 255; allowed are the classes"):
        dice_per_class(files[0], files[0], {"a": 1})


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
    assert dice_per_class(file, maps["label"]) == {"class 1": 1.0, "class 2": 1.0}


def test_the_first_channel_of_an_image_is_shown(maps: dict[str, Path], tmp_path: Path):
    values = np.asarray(nib.load(maps["image"]).dataobj)
    (tmp_path / "two").mkdir()
    two = write(tmp_path / "two/image.nii.gz", np.stack([values, values * 0], -1))
    pictures = [
        np.asarray(Image.open(draw_overlay(image, maps["prediction"], tmp_path / "o.png")))
        for image in (maps["image"], two)
    ]
    np.testing.assert_array_equal(*pictures)
    with pytest.raises(InputError, match=r"two/image\.nii\.gz has 4 axes; allowed are 2 and 3"):
        draw_overlay(maps["image"], two, tmp_path / "o.png")


def test_twenty_classes_have_colours_of_their_own(tmp_path: Path):
    colours = [colour_of(number) for number in range(1, 21)]
    assert len(set(colours)) == 20
    assert colour_of(21) == colours[0]
    others = [*colours, *(colour for _, colour in ERRORS.values())]
    greys = [to_hex([level] * 3) for level in np.linspace(0, 1, 40)]
    for colour, other in itertools.chain(
        itertools.combinations(others, 2), itertools.product(colours, greys)
    ):
        lab = rgb2lab([[to_rgb(colour), to_rgb(other)]])[0]
        assert deltaE_ciede2000(*lab) > 14, (colour, other)
    values = np.zeros((22, 6, 6), np.uint8)
    values[1:-1, 1:-1, 1:-1] = np.arange(1, 21)[:, None, None]
    file = write(tmp_path / "a.nii.gz", values)
    pixels = np.asarray(Image.open(draw_overlay(file, file, tmp_path / "o.png")).convert("RGB"))
    legend = pixels[int(0.85 * len(pixels)) :].reshape(-1, 3)
    for colour in colours:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (legend == rgb).all(-1).sum() > 20, colour


def test_a_legend_names_classes_and_errors(maps: dict[str, Path]):
    classes = {"liver $_$": [1, 2], "tumour": 2}
    for label, expected in (
        (None, ["liver $_$"]),
        (maps["label"], ["liver $_$", "tumour", "missed"]),
    ):
        segmentation = read_segmentation(maps["prediction"], label, classes)
        scene = load_scene(maps["image"], segmentation.maps)
        (legend,) = _overlay("a", scene, segmentation, None).legends
        assert [text.get_text() for text in legend.get_texts()] == expected
        colours = [to_hex(patch.get_facecolor()).upper() for patch in legend.get_patches()]
        assert colours == [colour_of(1), colour_of(2), ERRORS[2][1]][: len(expected)]


def test_missed_and_false_voxels_are_filled(maps: dict[str, Path], tmp_path: Path):
    """With prediction and label in each other's place it is the other error; the image is black."""
    black = write(tmp_path / "black.nii.gz", np.zeros((20, 24, 12), np.float32))

    def filled(prediction: str, label: str) -> dict[str, int]:
        file = draw_overlay(
            black, maps[prediction], tmp_path / "o.png", maps[label], window=(0.0, 1.0)
        )
        pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
        return {
            name: int((np.abs(pixels - 0.6 * 255 * np.array(to_rgb(colour))).max(-1) < 3).sum())
            for name, colour in ERRORS.values()
        }

    found = filled("prediction", "label")
    assert found.pop("missed") > 3000
    assert set(found.values()) == {0}
    found = filled("label", "prediction")
    assert found.pop("false") > 1000
    assert set(found.values()) == {0}
    assert set(filled("label", "label").values()) == {0}


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
    assert [names[x] for x in kinds_of(label, prediction, classes).tolist()] == [
        *("-", "false", "right", "false", "right", "missed", "missed", "-"),
    ]
    apart = {"left": [1], "right": [2]}
    assert kinds_of(np.array([1]), np.array([2]), apart).tolist() == [4]


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
