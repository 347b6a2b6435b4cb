"""Statistics against examples by hand, enumeration, SciPy and statsmodels."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from common.errors import InputError
from common.evaluation.statistics import compare_values, fewest_cases


def compared(*methods: object, better: str | None = "larger", resamples: int = 4000) -> dict:
    """Methods A, B, ...; each has a value per case, or a row of classes per case."""
    values = np.array(methods, float)
    values = values[..., None] if values.ndim == 2 else values
    cases = values.shape[1]
    draw = np.random.default_rng(0).multinomial(cases, [1 / cases] * cases, size=resamples)
    return compare_values("ABCDE"[: len(values)], values, better, draw.astype(float))


def only_pair(*methods: object) -> dict:
    (pair,) = compared(*methods)["pairs"]
    return pair


@pytest.mark.parametrize(
    ("differences", "statistic", "p", "effect"),
    [
        # ranks 1 to 6, that of -6 below zero: 14 of the 64 subsets of them have a sum up to 6
        ([1, 2, 3, 4, 5, -6], 6, 2 * 14 / 64, (15 - 6) / 21),
        # three ties of rank 2, and 4: of their 16 subsets four have a sum up to 2
        ([1, 1, 2, -1], 2, 2 * 4 / 16, (8 - 2) / 10),
        # the zero is dropped
        ([1, 0, -2, 3], 2, 2 * 3 / 8, (4 - 2) / 6),
        ([3], 0, 1, 1),
        ([1, 2, 3, 4, 5], 0, 2 / 32, 1),
        ([-1, -2, -3, -4, -5, -6], 0, 2 / 64, -1),
        ([2, 2, 2, 2, 2], 0, 2 / 32, 1),  # the normal approximation would say 0.025
    ],
)
def test_worked_examples(differences: list[float], statistic: float, p: float, effect: float):
    pair = only_pair(differences, np.zeros(len(differences)))
    assert pair["statistic"] == statistic
    assert pair["p"] == pytest.approx(p)
    assert pair["p_holm"] == pytest.approx(p)
    assert pair["effect_size"] == pytest.approx(effect)
    assert pair["method"] == "exact"
    assert pair["n"] == len(differences)
    assert pair["zeros"] == differences.count(0)


def test_differences_that_are_equal_but_for_rounding_are_ties():
    """0.3 - 0.2 is 0.09999999999999998, 0.2 - 0.1 is 0.1."""
    pair = only_pair([0.3, 0.2, 0.5, 0.1], [0.2, 0.1, 0.3, 0.2])
    assert pair["statistic"] == 2
    assert pair["effect_size"] == pytest.approx(0.6)
    assert only_pair([0.3, 0.7], [0.1 + 0.2, 0.8])["zeros"] == 1


@pytest.mark.parametrize("cases", [6, 13, 50, 51, 200])
@pytest.mark.parametrize("step", [None, 0.05])
def test_as_scipy(cases: int, step: float | None):
    """Of values on a grid, differences are tied or zero."""
    random = np.random.default_rng(cases)
    a, b = random.uniform(0.5, 1, (2, cases))
    if step:
        a, b = (np.round(x / step) for x in (a, b))
    pair = only_pair(a, b)
    moved = np.round(a - b, 10)
    moved = moved[moved != 0]
    if step and len(moved) <= 12:  # every choice of signs
        ranks = stats.rankdata(abs(moved))
        sums = np.array(list(itertools.product((0, 1), repeat=len(moved)))) @ ranks
        p, method = min(1, 2 * (sums <= pair["statistic"]).mean()), "exact"
    else:
        method = "exact" if step is None and cases <= 50 else "approximate"
        kind = {"exact": "exact", "approximate": "approx"}[method]
        p = stats.wilcoxon(moved, method=kind).pvalue
    assert pair["statistic"] == stats.wilcoxon(moved).statistic
    assert pair["p"] == pytest.approx(p)
    assert pair["method"] == method


def test_holm_over_all_pairs():
    random = np.random.default_rng(1)
    values = random.uniform(0.5, 1, (4, 20)) + np.array([0, 0.05, 0.1, 0.3])[:, None]
    pairs = compared(*values)["pairs"]
    assert [pair["a"] + pair["b"] for pair in pairs] == ["AB", "AC", "AD", "BC", "BD", "CD"]
    p = np.array([pair["p"] for pair in pairs])
    corrected = [pair["p_holm"] for pair in pairs]
    assert corrected == pytest.approx(multipletests(p, method="holm")[1])
    order = np.argsort(p)  # by hand: the smallest p times 6, the next times 5, never falling
    by_hand = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(6, 0, -1)))
    assert np.array(corrected)[order] == pytest.approx(by_hand)


def test_means_and_intervals_as_scipy():
    random = np.random.default_rng(2)
    a, b = random.beta(8, 2, (2, 30))
    found = compared(a, b, resamples=20000)
    own = found["methods"]["A"]
    assert (own["mean"], own["sd"]) == pytest.approx((a.mean(), a.std(ddof=1)))
    for values, interval in ((a, own["ci"]), (a - b, found["pairs"][0]["ci"])):
        scipys = stats.bootstrap(
            (values,), np.mean, n_resamples=20000, method="percentile", random_state=0
        ).confidence_interval
        assert interval == pytest.approx(scipys, abs=0.04 * (scipys.high - scipys.low))
    assert found["pairs"][0]["difference"] == pytest.approx((a - b).mean())


def test_all_methods_have_the_same_resamples():
    """Where each case differs by the same, so does each resample; intervals alone overlap."""
    a = np.random.default_rng(3).uniform(0.5, 0.9, 12)
    found = compared(a, a + 0.01)
    assert found["pairs"][0]["ci"] == pytest.approx([-0.01, -0.01])
    assert found["methods"]["A"]["ci"][1] > found["methods"]["B"]["ci"][0]
    assert [entry["first"] for entry in found["ranking"]] == [1, 0]


def test_stability_of_ranks_as_enumerated():
    a, b, c = values = np.array([[0.9, 0.5, 0.4], [0.6, 0.6, 0.55], [0.1, 0.1, 0.1]])
    means = [
        [x[list(drawn)].mean() for x in (a, b, c)]
        for drawn in itertools.product(range(3), repeat=3)
    ]
    first = np.mean([round(m[0], 10) >= round(m[1], 10) for m in means])  # of ties both are first
    ranking = compared(*values, resamples=20000)["ranking"]
    assert [(entry["method"], entry["rank"]) for entry in ranking] == [("A", 1), ("B", 2), ("C", 3)]
    assert ranking[0]["first"] == pytest.approx(first, abs=0.02)
    assert [entry["rank_ci"] for entry in ranking] == [[1, 2], [1, 2], [3, 3]]


def test_the_direction_is_the_metrics():
    better = {"larger": ["A", "B"], "smaller": ["B", "A"], None: []}
    for direction, order in better.items():
        found = compared([3, 4], [1, 2], better=direction)
        assert [entry["method"] for entry in found["ranking"]] == order
        assert found["pairs"][0]["difference"] == 2


def test_methods_that_are_equal():
    values = np.random.default_rng(4).uniform(size=9)
    found = compared(values, values, values - 1)
    same = found["pairs"][0]
    assert (same["p"], same["p_holm"], same["effect_size"], same["zeros"]) == (1, 1, 0, 9)
    assert (same["difference"], same["ci"]) == (0, [0, 0])
    assert [(entry["method"], entry["rank"]) for entry in found["ranking"]] == [
        *(("A", 1), ("B", 1), ("C", 3))
    ]
    assert [entry["first"] for entry in found["ranking"]] == [1, 1, 0]


def test_a_single_case_has_no_spread():
    found = compared([0.9], [0.8])
    assert found["methods"]["A"] == {"mean": 0.9, "sd": None, "ci": None, "n": 1, "left_out": 0}
    pair = found["pairs"][0]
    assert (pair["p"], pair["ci"], pair["n"]) == (1, None, 1)
    assert pair["difference"] == pytest.approx(0.1)
    (first, _) = found["ranking"]
    assert first == {"method": "A", "rank": 1, "rank_ci": [None, None], "first": None}


def test_cases_without_a_value_are_left_out_of_their_pairs():
    nan = np.nan
    found = compared([1, 2, 3, 4], [nan, 1, 1, 1], [nan, nan, 9, 9], better="smaller")
    assert [own["mean"] for own in found["methods"].values()] == [2.5, 1, 9]
    assert [(own["n"], own["left_out"]) for own in found["methods"].values()] == [
        *((4, 0), (3, 1), (2, 2))
    ]
    assert [(pair["difference"], pair["n"], pair["left_out"]) for pair in found["pairs"]] == [
        *((2, 3, 1), (-5.5, 2, 2), (-8, 2, 2))
    ]
    # ranked by the two cases that all have, where A's mean is 3.5
    assert found["ranked_cases"] == 2
    assert [entry["method"] for entry in found["ranking"]] == ["B", "A", "C"]


def test_nothing_in_common():
    nan = np.nan
    found = compared([1, nan], [nan, 2], [3, 4])
    pair = found["pairs"][0]
    assert pair["n"] == 0
    assert {pair[name] for name in ("difference", "ci", "p", "p_holm", "effect_size")} == {None}
    # Holm's is over the two pairs that were tested
    assert [pair["p_holm"] for pair in found["pairs"][1:]] == [1, 1]
    assert found["ranking"] == []


def test_a_mean_of_classes_is_of_those_that_both_have():
    nan = np.nan
    a = [[0.9, 0.5], [0.8, nan], [nan, nan]]
    b = [[0.8, 0.1], [0.6, 0.4], [0.5, 0.5]]
    found = compared(a, b)
    assert found["methods"]["A"]["mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert found["methods"]["B"]["mean"] == pytest.approx((0.45 + 0.5 + 0.5) / 3)
    assert found["pairs"][0]["difference"] == pytest.approx((0.25 + 0.2) / 2)
    assert found["pairs"][0]["left_out"] == 1


@pytest.mark.parametrize("pairs", [1, 3, 10])
def test_fewer_cases_cannot_be_significant(pairs: int):
    fewest = fewest_cases(pairs)
    assert fewest == {1: 6, 3: 7, 10: 9}[pairs]
    smallest = [only_pair(np.arange(1, n + 1), np.zeros(n))["p"] for n in (fewest - 1, fewest)]
    corrected = [multipletests([p] * pairs, method="holm")[1].min() for p in smallest]
    assert corrected[0] >= 0.05 > corrected[1]


def test_statsmodels_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "statsmodels.stats.multitest", None)
    with pytest.raises(InputError, match=r"compare needs statsmodels: pip install \"\.\[study\]\""):
        compared([1, 2], [3, 4], [5, 6])
