"""Whether methods differ over the cases that they share: tests, intervals and ranks of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..errors import InputError, how_to_install

_EXACT = 50  # differences; of more, the normal approximation is as good
_EXACT_TIED = 12  # of which all 2^n signs are tried
_DECIMALS = 10  # what differs by less is equal: 0.3 - 0.2 and 0.2 - 0.1 are tied

_Floats = NDArray[np.float64]

RULES = {
    "test": "Wilcoxon signed rank, paired by case, two-sided; differences are a - b, rounded to "
    f"{_DECIMALS} decimals; zeros are dropped, ties have mean ranks; exact for up to {_EXACT} "
    f"differences, with ties {_EXACT_TIED}, else the normal approximation, corrected for ties",
    "correction": "Holm over all pairs of a metric and class",
    "effect_size": "matched-pairs rank-biserial correlation, above 0 where a is the larger",
    "interval": "95 %, percentiles over resampled cases, which are the same for all methods",
    "missing": "a case without a value with a or b is left out of that pair; a method's own mean "
    "is over the cases where it has one; a mean of classes is over those of a case that have a "
    "value, for a pair with both",
    "ranking": "by the means over cases and classes that have a value with every method; methods "
    "that are equal share the better rank",
}


def compare_values(
    methods: Sequence[str], values: _Floats, better: str | None, weights: _Floats
) -> dict[str, Any]:
    """Means, pairs and ranks of one metric, by the rules that are `RULES`.

    Args:
        methods: their names.
        values: (methods, cases, classes); NaN where there is none. Of several classes a case's mean
            is compared.
        better: "larger", "smaller", or None where no method is better by it.
        weights: how often each case is in each resample, (resamples, cases).

    Returns:
        "better", "methods" (by name: "mean", "sd", "ci", "n" cases, "left_out"), "pairs" ("a", "b",
        "difference", "ci", "statistic", "p", "p_holm", "effect_size", "n", "zeros", "left_out", and
        the test's "method"), "ranking" ("method", "rank", "rank_ci", and "first", the share of
        resamples in which it is first), and "ranked_cases". What has no value is None.
    """
    own = _nanmean(values, axis=2)
    resampled = _weighted_means(own, weights)
    of_methods = {}
    for name, of_cases, means in zip(methods, own, resampled.T, strict=True):
        known = of_cases[np.isfinite(of_cases)]
        of_methods[name] = {
            "mean": float(known.mean()) if len(known) else None,
            "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
            "ci": _interval(means, len(known)),
            "n": len(known),
            "left_out": len(of_cases) - len(known),
        }
    pairs = []
    for a, b in combinations(range(len(methods)), 2):
        differences = np.round(_nanmean(values[a] - values[b], axis=1), _DECIMALS)
        known = differences[np.isfinite(differences)]
        pairs.append(
            {
                "a": methods[a],
                "b": methods[b],
                "difference": float(known.mean()) if len(known) else None,
                "ci": _interval(_weighted_means(differences[None], weights)[:, 0], len(known)),
                **_signed_rank(known),
                "n": len(known),
                "left_out": len(differences) - len(known),
            }
        )
    tested = [pair for pair in pairs if pair["p"] is not None]
    for pair, corrected in zip(tested, _holm([pair["p"] for pair in tested]), strict=True):
        pair["p_holm"] = corrected
    common = _nanmean(np.where(np.isfinite(values).all(0), values, math.nan), axis=2)
    return {
        "better": better,
        "methods": of_methods,
        "pairs": pairs,
        "ranking": _ranking(methods, common, better, weights),
        "ranked_cases": int(np.isfinite(common[0]).sum()),
    }


def fewest_cases(pairs: int) -> int:
    """How many cases have to differ for a p below 0.05 after Holm over so many pairs.

    The smallest p of n differences is that of one sign for all of them, 2 / 2^n.
    """
    return next(n for n in range(1, 64) if pairs * 2.0 ** (1 - n) < 0.05)


def _signed_rank(differences: _Floats) -> dict[str, Any]:
    """Wilcoxon's test (1945), two-sided, and the rank-biserial correlation (Kerby, 2014)."""
    moved = differences[differences != 0]
    zeros = len(differences) - len(moved)
    found: dict[str, Any] = dict.fromkeys(("statistic", "p", "p_holm", "effect_size", "method"))
    found["zeros"] = zeros
    if not len(moved):
        same = {"statistic": 0.0, "p": 1.0, "effect_size": 0.0, "method": "exact"}
        return found | same if zeros else found
    ranks = np.sign(moved) * stats.rankdata(np.abs(moved))
    positive, negative = float(ranks[ranks > 0].sum()), float(-ranks[ranks < 0].sum())
    tied = len(np.unique(np.abs(moved))) < len(moved)
    exact = len(moved) <= (_EXACT_TIED if tied else _EXACT)
    if tied and exact:  # SciPy's own exact distribution is that of ranks without ties
        signs: dict[str, Any] = {"permutation_type": "samples", "n_resamples": np.inf}
        p = stats.permutation_test((ranks,), np.sum, **signs).pvalue
    else:
        p = stats.wilcoxon(moved, method="exact" if exact else "approx").pvalue
    return found | {
        "statistic": min(positive, negative),
        "p": float(p),
        "effect_size": (positive - negative) / (positive + negative),
        "method": "exact" if exact else "approximate",
    }


def _holm(p: Sequence[float]) -> list[float]:
    if len(p) < 2:
        return list(p)
    try:
        from statsmodels.stats.multitest import multipletests
    except ImportError as error:
        raise InputError(f"compare needs statsmodels: {how_to_install('study')}.") from error
    return multipletests(p, method="holm")[1].tolist()


def _ranking(
    methods: Sequence[str], values: _Floats, better: str | None, weights: _Floats
) -> list[dict[str, Any]]:
    """Methods by their means over cases, (methods, cases), the best first.

    Stability is over resamples (Wiesenfarth et al., 2021); of one case there is none.
    """
    cases = int(np.isfinite(values[0]).sum())
    if better is None or not cases:
        return []
    sign = -1 if better == "larger" else 1
    means = np.round(_nanmean(values, axis=1), _DECIMALS)
    ranks = stats.rankdata(sign * means, method="min").astype(int)
    resampled = np.round(_weighted_means(values, weights), _DECIMALS)
    resampled = resampled[np.isfinite(resampled).all(1)]
    stability = stats.rankdata(sign * resampled, method="min", axis=1).astype(int)
    low, high = np.percentile(stability, [2.5, 97.5], axis=0, method="inverted_cdf")
    first = (stability == 1).mean(0)
    return [
        {
            "method": methods[index],
            "rank": int(ranks[index]),
            "rank_ci": [int(low[index]), int(high[index])] if cases > 1 else [None, None],
            "first": float(first[index]) if cases > 1 else None,
        }
        for index in np.argsort(ranks, kind="stable")
    ]


def _nanmean(values: _Floats, axis: int) -> _Floats:
    """NumPy's ``nanmean``, without its warning where nothing is known."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)


def _weighted_means(values: _Floats, weights: _Floats) -> _Floats:
    """Means over cases, (rows, cases), in each resample: (resamples, rows)."""
    known = np.isfinite(values)
    total, count = weights @ np.where(known, values, 0).T, weights @ known.T.astype(float)
    return np.divide(total, count, out=np.full(total.shape, math.nan), where=count > 0)


def _interval(means: _Floats, cases: int) -> list[float] | None:
    """The percentile interval of 95 %; of fewer than two cases there is none."""
    return np.nanpercentile(means, [2.5, 97.5]).tolist() if cases > 1 else None
