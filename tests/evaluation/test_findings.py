"""What a label map holds: by hand, by brute force, and as an evaluation has it."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from common.evaluation import draw_preview, evaluate, findings
from common.evaluation.findings import axes
from common.evaluation.scenes import colour_of, scene_of

SPACING = [0.8, 0.7, 2.5]
CLASSES = {"liver": 1, "tumour": 2, "vessel": 3}


def label_map() -> np.ndarray:
    labels = np.zeros((24, 20, 10), np.uint8)
    labels[2:20, 2:16, 1:9] = 1
    labels[5:11, 4:7, 3:6] = 2
    labels[14, 10, 5] = 2
    labels[15:17, 11:13, 6] = 2  # with the voxel before by a corner
    return labels


def test_numbers_of_a_class():
    labels = label_map()
    values = np.random.default_rng(0).normal(60, 10, labels.shape).astype(np.float32)
    found = findings(labels, values, CLASSES, ["tumour"], SPACING)
    inside = values[labels == 1].astype(float)
    assert found["liver"] == {
        "voxels": len(inside),
        "volume_ml": pytest.approx(len(inside) * 0.8 * 0.7 * 2.5 / 1000),
        "mean": pytest.approx(inside.mean()),
        "sd": pytest.approx(math.sqrt(((inside - inside.mean()) ** 2).mean())),
    }
    nothing = {"voxels": 0, "volume_ml": 0.0, "mean": None, "sd": None}
    assert found["vessel"] == nothing
    assert findings(labels * 0, values, CLASSES, ["tumour"], SPACING)["tumour"] == {
        **nothing,
        "lesions": [],
    }
    large, small = found["tumour"]["lesions"]
    assert (large["voxels"], small["voxels"]) == (6 * 3 * 3, 5)
    assert large["long_axis_mm"] == pytest.approx(math.hypot(5 * 0.8, 2 * 0.7))
    assert small["slice"] == 6
    assert large["slice"] in (3, 4, 5)
    assert large["mean"] == pytest.approx(values[5:11, 4:7, 3:6].astype(float).mean())
    assert (found["tumour"]["voxels"], large["volume_ml"]) == (
        54 + 5,
        pytest.approx(54 * 0.8 * 0.7 * 2.5 / 1000),
    )


def test_axial_slices_are_across_any_axis():
    labels = label_map()
    values = np.ones(labels.shape, np.float32)
    usual = findings(labels, values, CLASSES, ["tumour"], SPACING)["tumour"]["lesions"]
    turned = findings(
        np.moveaxis(labels, 2, 0), np.moveaxis(values, 2, 0), CLASSES, ["tumour"],
        [SPACING[2], *SPACING[:2]], axial=0,
    )["tumour"]["lesions"]  # fmt: skip
    for one, other in zip(usual, turned, strict=True):
        assert one == {name: pytest.approx(value) for name, value in other.items()}


def test_as_an_evaluation_has_them(tmp_path: Path):
    labels = label_map()
    affine = np.diag([*SPACING, 1.0])
    for folder in ("masks", "labels"):
        (tmp_path / folder).mkdir()
        nib.save(nib.Nifti1Image(labels, affine), tmp_path / folder / "case.nii.gz")
    classes = {"liver": 1, "tumour": 2}
    evaluate(tmp_path / "masks", tmp_path / "labels", tmp_path / "out", classes, lesions=["tumour"])
    found = findings(labels, labels.astype(np.float32), classes, ["tumour"], SPACING)
    with (tmp_path / "out/cases.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert float(row["volume_ml"]) == pytest.approx(found[row["name"]]["volume_ml"])
    with (tmp_path / "out/lesions.csv").open(newline="") as file:
        theirs = sorted(
            (float(row["volume_ml"]), float(row["diameter_mm"])) for row in csv.DictReader(file)
        )
    ours = sorted((x["volume_ml"], x["diameter_mm"]) for x in found["tumour"]["lesions"])
    assert len(ours) == 2
    np.testing.assert_allclose(ours, theirs)


def test_pictures_have_pixels():
    labels = np.zeros((9, 12), np.uint8)
    labels[2:6, 3:5] = 1
    found = findings(labels, labels.astype(np.float32), {"lesion": 1}, ["lesion"], None)["lesion"]
    assert (found["voxels"], found["volume_ml"]) == (8, None)
    (lesion,) = found["lesions"]
    assert lesion["long_axis_mm"] == pytest.approx(math.hypot(3, 1))
    assert lesion["slice"] is None
    assert json.dumps(found)


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.2])
def test_axes_of_an_ellipse(angle: float):
    grid = np.argwhere(np.ones((121, 121), bool)) - 60.0
    along = grid @ [math.cos(angle), math.sin(angle)]
    across = grid @ [-math.sin(angle), math.cos(angle)]
    points = grid[(along / 50) ** 2 + (across / 20) ** 2 <= 1] * 0.5
    long, short = axes(points)
    assert long == pytest.approx(50, abs=1)
    assert short == pytest.approx(20, abs=1)


@pytest.mark.parametrize("seed", range(4))
def test_axes_by_brute_force(seed: int):
    """The long one between any two points; the short one through the hull, line by line."""
    points = np.random.default_rng(seed).normal(size=(40, 2)) * [3, 1]
    long, short = axes(points)
    pairs = [(math.dist(a, b), i, j) for i, a in enumerate(points) for j, b in enumerate(points)]
    longest, i, j = max(pairs)
    assert long == pytest.approx(longest)
    along = (points[j] - points[i]) / longest
    across = np.array([-along[1], along[0]])
    best = 0.0
    for at in np.linspace(0, longest, 2001):
        # What a line across meets of the segments between all points, which span the hull.
        t, s = (points - points[i]) @ along, (points - points[i]) @ across
        first, second = np.meshgrid(range(len(points)), range(len(points)))
        low, high = t[first], t[second]
        meets = (low <= at) & (at <= high) & (high > low)
        share = (at - low[meets]) / (high - low)[meets]
        places = s[first][meets] + share * (s[second] - s[first])[meets]
        if len(places):
            best = max(best, float(np.ptp(places)))
    assert short == pytest.approx(best, rel=1e-2)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[3, 4]], (0.0, 0.0)),
        ([[0, 0], [3, 4]], (5.0, 0.0)),
        ([[0, 0], [1, 1], [2, 2], [5, 5]], (math.hypot(5, 5), 0.0)),
        ([[0, 0], [0, 2], [2, 0], [2, 2]], (math.hypot(2, 2), math.hypot(2, 2))),
    ],
)
def test_axes_of_few_points(points: list, expected: tuple[float, float]):
    assert axes(np.array(points, float)) == pytest.approx(expected)


def colours(file: Path) -> dict[int, int]:
    """How many pixels of a picture have about the colour of a class."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    found = {}
    for value in CLASSES.values():
        wanted = [int(colour_of(value)[i : i + 2], 16) for i in (1, 3, 5)]
        found[value] = int((np.abs(pixels - wanted).max(-1) < 12).sum())
    return found


def test_preview_shows_what_there_is(tmp_path: Path):
    labels = label_map()
    values = np.random.default_rng(0).normal(60, 10, labels.shape).astype(np.float32)
    names = {value: name for name, value in CLASSES.items()}
    scene = scene_of(values, np.diag([*SPACING, 1.0]), {"labels": labels})
    file = draw_preview(scene, names, tmp_path / "preview.png", "scan $1", ct=True)
    found = colours(file)
    assert found[1] > 200
    assert found[2] > 50
    assert found[3] == 0
    assert Image.open(file).width > 1500  # three planes and the surfaces
    empty = scene._replace(maps={"labels": scene.maps["labels"] * 0})
    file = draw_preview(empty, names, tmp_path / "empty.png", "scan")
    assert colours(file) == {1: 0, 2: 0, 3: 0}
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["empty.png", "preview.png"]


def test_preview_is_the_same_wherever_axes_point(tmp_path: Path):
    labels = label_map()
    values = np.random.default_rng(0).normal(60, 10, labels.shape).astype(np.float32)
    affine = np.diag([*SPACING, 1.0])
    lps = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    lps[:2, 3] = (np.array(labels.shape[:2]) - 1) * SPACING[:2]
    one = scene_of(values, affine, {"labels": labels})
    other = scene_of(values[::-1, ::-1], lps, {"labels": labels[::-1, ::-1]})
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.maps["labels"], other.maps["labels"])
    assert one.spacing == pytest.approx(other.spacing)


def test_preview_of_a_radiograph(tmp_path: Path):
    labels = np.zeros((60, 40), np.uint8)
    labels[10:30, 5:20] = 1
    values = np.random.default_rng(0).normal(100, 30, labels.shape).astype(np.float32)
    scene = scene_of(values, None, {"labels": labels})
    assert scene.flat
    file = draw_preview(scene, {1: "lung"}, tmp_path / "preview.png", "film")
    assert colours(file)[1] > 50
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        draw_preview(scene, {1: "lung"}, file, "film")
