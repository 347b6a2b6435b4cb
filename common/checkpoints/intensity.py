"""nnU-Net's normalisations, as the setting ``intensity`` of the bundles."""

from __future__ import annotations

from typing import Any


def ct_intensity(low: float, high: float, mean: float, std: float) -> dict[str, Any]:
    """Clipped to low and high, then less the mean, by the standard deviation; all in HU."""
    return {
        "_target_": "ScaleIntensityRanged",
        "keys": "image",
        "a_min": low,
        "a_max": high,
        "b_min": (low - mean) / std,
        "b_max": (high - mean) / std,
        "clip": True,
    }


def z_score_intensity(nonzero: bool) -> dict[str, Any]:
    """Mean 0 and standard deviation 1 of each channel, or of its voxels that are not 0."""
    return {
        "_target_": "NormalizeIntensityd",
        "keys": "image",
        "nonzero": nonzero,
        "channel_wise": True,
    }
