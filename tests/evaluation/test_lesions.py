from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from common.evaluation import Lesion, find_lesions
from common.evaluation.lesions import summarise_lesions

from .masks import Mask, components, pairs, with_box, with_voxels


def by_hand(
    prediction: Mask, label: Mask, spacing: list[float], overlap: float
) -> list[tuple[str, int, float, float]]:
    """Kind, voxels, diameter and Dice of each: those of the label, then the false ones."""
    found, true = components(prediction), components(label)
    ious = {
        (i, j): len(a & b) / len(a | b)
        for (i, a), (j, b) in itertools.product(enumerate(true), enumerate(found))
        if a & b
    }
    match: dict[int, int] = {}
    for (i, j), iou in sorted(ious.items(), key=lambda pair: (-pair[1], pair[0])):
        if iou >= overlap and i not in match and j not in match.values():
            match[i] = j

    def diameter(part: set[tuple[int, ...]]) -> float:
        points = [[s * x for s, x in zip(spacing, voxel, strict=True)] for voxel in part]
        return max(math.dist(a, b) for a in points for b in points)

    def dice(i: int) -> float:
        other = found[match[i]]
        return 2 * len(true[i] & other) / (len(true[i]) + len(other))

    return [
        (
            "found" if i in match else "missed",
            len(part),
            diameter(part),
            dice(i) if i in match else math.nan,
        )
        for i, part in enumerate(true)
    ] + [
        ("false", len(part), diameter(part), math.nan)
        for j, part in enumerate(found)
        if j not in match.values()
    ]


@settings(max_examples=150, deadline=None)
@given(masks=pairs(), overlap=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_against_counting(masks: tuple[Mask, Mask, list[float]], overlap: float):
    prediction, label, spacing = masks
    lesions = find_lesions(prediction, label, spacing, overlap)
    found = [(x.kind, x.voxels, x.diameter_mm, x.dice) for x in lesions]
    for one, wanted in zip(found, by_hand(prediction, label, spacing, overlap), strict=True):
        assert one[:2] == wanted[:2]
        assert one[2:] == pytest.approx(wanted[2:], nan_ok=True)
    number = len(components(label))
    assert {x.number for x in lesions} <= {number}
    for x in lesions:
        volume = x.voxels * math.prod(spacing) / 1000 if label.ndim == 3 else math.nan
        assert x.volume_ml == pytest.approx(volume, nan_ok=True)
    of_label = [x.lesion for x in lesions if x.kind != "false"]
    assert of_label == list(range(1, number + 1))


BALL = np.linalg.norm(np.indices((21, 21, 21)) - 10, axis=0) < 9.5
SHAPES = {
    "ball": BALL,
    "disc": np.pad(BALL[..., 10:11], ((0, 0), (0, 0), (3, 3))),
    "line": with_box((99, 3, 3), (99, 1, 1)),
    "diagonal line": np.eye(80, dtype=bool)[..., None],
    "disc in 2D": BALL[..., 10],
}


@pytest.mark.parametrize("name", SHAPES)
def test_diameters_of_large_lesions(name: str):
    """Of many voxels only a hull's corners are compared; flat ones have no hull in space."""
    mask = SHAPES[name]
    spacing = [0.7, 0.9, 2.5][: mask.ndim]
    (lesion,) = find_lesions(mask, mask, spacing)
    assert lesion.voxels > 64
    points = np.argwhere(mask)
    assert lesion.diameter_mm == pytest.approx(pdist(points * spacing).max())
    assert lesion.diameter_voxels == pytest.approx(pdist(points).max())


def test_one_component_finds_one_lesion():
    """A prediction that joins two finds the larger."""
    label = with_box((9, 3), (4, 3)) | np.flip(with_box((9, 3), (2, 3)))
    joined = np.ones((9, 3), bool)
    assert [x.kind for x in find_lesions(joined, label, [1.0, 1.0], 0.0)] == ["found", "missed"]
    assert [x.kind for x in find_lesions(label, joined, [1.0, 1.0], 0.0)] == ["found", "false"]


def lesion(kind: str, diameter: float, dice: float = math.nan, number: int = 1) -> Lesion:
    return Lesion(1, kind, 10, 25.0, diameter, number, dice, 12.0)  # type: ignore[arg-type]


def test_summary():
    lesions = [
        lesion("found", 10, 0.9),
        lesion("missed", 12, number=3),
        lesion("found", 20, 0.5, number=7),
        lesion("false", 30),
    ]
    found = summarise_lesions(lesions, cases=2)
    counted = {"found": 2, "missed": 1, "false": 1, "recall": 2 / 3, "precision": 2 / 3}
    counted |= {"f1": 2 / 3, "dice": 0.7, "dice_with_missed": 1.4 / 3}
    strata = found.pop("strata")
    assert found.pop("major_axis_mm") == {"well": 10, "badly": 16}
    assert found == pytest.approx(counted | {"false_positives_per_case": 0.5})
    counts = {
        name: [of[kind] for kind in ("found", "missed", "false")]
        for name, of in strata["diameter_mm"].items()
    }
    assert counts == {"< 20": [1, 1, 0], "20 to 50": [1, 0, 1], ">= 50": [0, 0, 0]}
    assert strata["diameter_mm"]["< 20"]["dice_with_missed"] == pytest.approx(0.45)
    assert strata["diameter_mm"][">= 50"]["recall"] is None
    assert list(strata["diameter_voxels"]) == ["< 10", "10 to 20", "20 to 30", "30 to 50", ">= 50"]
    assert strata["diameter_voxels"]["10 to 20"]["found"] == 2
    assert strata["volume_ml"]["20 to 200"]["false"] == 1
    assert [of["found"] for of in strata["number"].values()] == [1, 0, 1]
    assert summarise_lesions([], cases=3)["f1"] is None


def test_voxels_that_share_a_corner_are_of_one_lesion():
    label = with_voxels((3, 3, 3), [(0, 0, 0), (1, 1, 1)])
    (one,) = find_lesions(np.zeros_like(label), label, [1.0, 1.0, 1.0])
    assert (one.kind, one.voxels, one.diameter_mm) == ("missed", 2, pytest.approx(math.sqrt(3)))
