"""Every metric against what it is, counted voxel by voxel."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings

from common.evaluation import BETTER, EMPTY_RULES, measure

from .masks import Mask, distances_by_pairs, distances_by_transform, pairs, with_box, with_voxels

CORNER = with_voxels((4, 4, 4), [(0, 0, 0)])
FAR = with_voxels((4, 4, 4), [(3, 3, 3)])
FULL = np.ones((4, 4, 4), bool)
EMPTY = np.zeros((4, 4, 4), bool)
TOLERANCE = 1.4


def expected(prediction: Mask, label: Mask, spacing: list[float], distances) -> dict[str, float]:
    """By nnU-Net's rule."""
    found, true = (set(map(tuple, np.argwhere(mask).tolist())) for mask in (prediction, label))
    both, either = len(found & true), len(found | true)

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else math.nan

    values = {
        "dice": ratio(2 * both, len(found) + len(true)),
        "iou": ratio(both, either),
        "voe": ratio(either - both, either),
        "rvd": ratio(len(found) - len(true), len(true)),
        "rvd_abs": ratio(abs(len(found) - len(true)), len(true)),
        "precision": ratio(both, len(found)),
        "recall": ratio(both, len(true)),
        "f2": ratio(5 * both, 4 * len(true) + len(found)),
        "asd": math.nan,
        "hd95": math.nan,
        "nsd": 0.0 if either else math.nan,
        "volume_ml": math.nan,
        "reference_ml": math.nan,
    }
    if label.ndim == 3:
        voxel = math.prod(spacing) / 1000
        values |= {"volume_ml": len(found) * voxel, "reference_ml": len(true) * voxel}
    if found and true:
        there, back = (np.array(x) for x in distances(prediction, label, spacing))
        every = np.concatenate([there, back])
        near = every.astype(np.float32) <= np.float32(TOLERANCE)
        values["asd"] = every.mean()
        values["hd95"] = max(np.percentile(there, 95), np.percentile(back, 95))
        values["nsd"] = near.mean()
    return values


@pytest.mark.parametrize("distances", [distances_by_pairs, distances_by_transform])
@settings(max_examples=150, deadline=None)
@given(masks=pairs())
@example(masks=(CORNER, FAR, [0.7, 1.5, 5.0]))
@example(masks=(FULL, CORNER, [0.7, 1.5, 5.0]))
@example(masks=(FULL, FULL, [1.0, 1.0, 3.0]))
@example(masks=(EMPTY, FULL, [1.0, 1.0, 3.0]))
@example(masks=(CORNER, EMPTY, [1.0, 1.0, 3.0]))
@example(masks=(EMPTY, EMPTY, [1.0, 1.0, 3.0]))
@example(masks=(with_box((1, 5, 5), (1, 4, 4)), with_box((1, 5, 5), (1, 5, 5)), [9.0, 1.0, 2.0]))
def test_against_counting(distances, masks: tuple[Mask, Mask, list[float]]):
    prediction, label, spacing = masks
    wanted = expected(prediction, label, spacing, distances)
    found = measure(prediction, label, spacing, TOLERANCE)
    assert list(found.values) == list(BETTER)
    assert found.values == pytest.approx(wanted, rel=1e-5, nan_ok=True)
    outcomes = {(1, 1): "both", (0, 0): "neither", (0, 1): "missed", (1, 0): "false"}
    assert found.outcome == outcomes[prediction.any(), label.any()]


def test_a_tolerance_is_within_itself():
    """Of 0.1 mm, three steps are 0.30000000000000004 mm."""
    there = with_voxels((4, 4), [(0, 0)])
    back = with_voxels((4, 4), [(3, 0)])
    assert measure(there, back, [0.1, 0.1], 0.3).values["nsd"] == 1
    assert measure(there, back, [0.1, 0.1], 0.29).values["nsd"] == 0


def test_the_surface_of_a_slice_is_its_contour():
    """As a mask of one slice all its voxels would be on the surface: its 5 x 5 twice."""
    label, prediction = with_box((9, 9, 1), (9, 9, 1)), with_box((9, 9, 1), (5, 5, 1))
    slice_ = measure(prediction, label, [1.0, 1.0, 5.0]).values
    flat = measure(prediction[..., 0], label[..., 0], [1.0, 1.0]).values
    for metric in ("asd", "hd95", "nsd"):
        assert slice_[metric] == flat[metric]
    assert slice_["volume_ml"] == 25 * 5 / 1000
    assert math.isnan(flat["volume_ml"])


def test_a_picture_is_measured_in_pixels():
    there, back = with_voxels((8, 8), [(0, 0)]), with_voxels((8, 8), [(3, 4)])
    values = measure(there, back, None).values
    assert values["asd"] == values["hd95"] == 5
    assert math.isnan(values["volume_ml"])


NAN = math.nan
# Dice, VOE, precision, recall, NSD, HD95: where neither has it, the prediction, or the label alone
RULES = {
    "nnunet": ([NAN] * 6, [0, 1, 0, NAN, 0, NAN], [0, 1, NAN, 0, 0, NAN]),
    "diagonal": ([NAN] * 6, [0, 1, 0, NAN, 0, 24], [0, 1, NAN, 0, 0, 24]),
    "brats": ([1, 0, 1, 1, 1, 0], [0, 1, 0, NAN, 0, 24], [0, 1, NAN, 0, 0, 24]),
    "label": ([NAN] * 6, [NAN] * 6, [0, 1, NAN, 0, 0, NAN]),
}


def test_every_rule_has_its_row():
    assert RULES.keys() == EMPTY_RULES.keys()


@pytest.mark.parametrize("rule", RULES)
def test_empty_masks(rule: str):
    spacing = [2.0, 4.0, 4.0]  # of 4 x 4 x 4 voxels the diagonal is |(8, 16, 16)|
    for wanted, masks in zip(
        RULES[rule], [(EMPTY, EMPTY), (CORNER, EMPTY), (EMPTY, CORNER)], strict=True
    ):
        values = measure(*masks, spacing, empty=rule).values
        found = [values[name] for name in ("dice", "voe", "precision", "recall", "nsd", "hd95")]
        assert found == pytest.approx(wanted, nan_ok=True)
        assert values["volume_ml"] == masks[0].sum() * 0.032
    with_both = measure(CORNER, FULL, spacing, empty=rule)
    assert with_both == measure(CORNER, FULL, spacing)


def test_directions_are_those_of_the_metrics():
    """A perfect mask is at least as good as any other, in each metric that has a direction."""
    label = with_box((6, 6, 6), (3, 3, 3))
    perfect, other = (measure(x, label, [1.0] * 3).values for x in (label, FULL_OF_SIX))
    for metric, better in BETTER.items():
        if better == "larger":
            assert perfect[metric] > other[metric] or metric == "recall"
        if better == "smaller":
            assert perfect[metric] < other[metric]


FULL_OF_SIX = np.ones((6, 6, 6), bool)
