"""A frontal chest radiograph with lung masks; nothing here is a patient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from ...errors import InputError
from .shapes import Array, smooth_noise, soft, tree_level

_LUNG_VESSELS = tuple(
    ((0.16 * side, 0.46), (side * across, down), 0.15, 0.02)
    for side in (-1, 1)
    for across, down in ((0.4, -0.9), (0.9, -0.2), (0.7, 0.7), (0.25, 0.95))
)


class CXRCase(NamedTuple):
    """One frontal chest radiograph (rows, columns); the patient's right is at the left."""

    image: NDArray[np.uint8]
    left: NDArray[np.bool_]
    """The patient's left lung."""
    right: NDArray[np.bool_]
    opacities: int
    """How many opacities lie over the lungs."""


def cxr_case(rng: Generator, shape: Sequence[int]) -> CXRCase:
    """Draw one radiograph of ``shape`` (rows, columns; at least 48 each) and its lung masks."""
    if len(shape) != 2 or min(shape) < 48:
        raise InputError(f"shape is {tuple(shape)}; allowed are rows and columns from 48.")
    axes = [np.linspace(0, 1, shape[0]), np.linspace(-1, 1, shape[1])]
    v, u = np.meshgrid(*axes, indexing="ij")
    v = v + rng.uniform(-0.03, 0.03) + 0.008 * smooth_noise(rng, axes, 0.4)
    u = u * rng.uniform(0.95, 1.08) + 0.015 * smooth_noise(rng, axes, 0.4)
    a = np.abs(u)
    wide, high = rng.uniform((0.27, 0.38), (0.33, 0.44))

    heart = np.hypot((u - 0.13) / rng.uniform(0.27, 0.34), (v - 0.65 - 0.2 * u) / 0.18) - 1
    knob = np.hypot((u - 0.07) / 0.09, (v - 0.33) / 0.07) - 1
    base = rng.uniform(0.73, 0.79) + 0.015 * np.tanh(u / 0.1)
    abdomen = base + 0.13 * ((a - 0.38) / 0.34) ** 2 - v
    oval = (np.abs(a - 0.33 - 0.13 * v) / wide) ** 2.4 + (np.abs(v - 0.53) / high) ** 2.4
    lung = np.maximum(oval ** (1 / 2.4) - 1, -np.minimum(np.minimum(heart, knob), 3 * abdomen))

    density = 0.62 * soft(a - 0.3 - 0.8 * soft(0.07 - v, 0.02), 0.03) * np.sqrt(1.5 - a**2)
    density -= soft(lung, 0.02) * (0.22 + 0.2 * np.clip(-2 * lung, 0, 1))
    density += 0.1 * soft(abdomen, 0.015) + 0.12 * soft(heart, 0.04) + 0.06 * soft(knob, 0.1)
    density += 0.15 * soft(a - 0.1, 0.02) - 0.07 * soft(a - 0.03, 0.01) * soft(v - 0.36, 0.02)
    bubble = np.hypot((u - 0.42) / 0.14, (v - base - 0.09) / 0.04) - 1
    density += _bones(a, v) * (1 - 0.6 * soft(heart, 0.04)) - 0.15 * soft(bubble, 0.1)
    vessels = tree_level(rng, _LUNG_VESSELS, 0.005, np.stack([u, v]), lung < 0)
    density += 0.06 * soft(vessels, 0.003)
    opacities = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
    for row, column in rng.choice(np.argwhere(lung < -0.25), opacities):
        spread = np.hypot(u - u[row, column], 1.5 * (v - v[row, column])) / rng.uniform(0.07, 0.2)
        cloud = np.exp(-(spread**2)) * (1 + 0.3 * smooth_noise(rng, axes, 0.06))
        density += rng.uniform(0.15, 0.3) * cloud * soft(lung, 0.02)

    density = ndimage.gaussian_filter(density + 0.02 * smooth_noise(rng, axes, 1), 0.6)
    exposed = np.clip((density - rng.uniform(-0.05, 0.05)) / rng.uniform(1, 1.15), 0, 1)
    noisy = exposed ** rng.uniform(0.75, 1.2) + rng.normal(0, rng.uniform(0.008, 0.02), shape)
    image = (255 * noisy.clip(0, 1)).round().astype(np.uint8)
    return CXRCase(image, (lung < 0) & (u > 0), (lung < 0) & (u < 0), opacities)


def _bones(a: Array, v: Array) -> Array:
    """Density of ribs, clavicles and vertebrae; ``a`` from the midline, ``v`` downwards."""
    cage = soft(a - 0.76 * np.sqrt(np.clip(1 - ((v - 0.62) / 0.6) ** 2, 0, 1)), 0.02)
    posterior = np.abs((v - 0.3 * a**2 + 0.03) % 0.088 - 0.044)
    anterior = np.abs((v + 0.35 * a) % 0.1 - 0.05)
    clavicle = np.abs(v - 0.23 + 0.15 * a + 0.012 * np.sin(8 * a))
    ribs = 0.07 * soft(posterior - 0.015, 0.003) * soft(0.08 - a, 0.02)
    ribs += 0.03 * soft(anterior - 0.018, 0.004) * soft(0.3 - a, 0.04)
    vertebrae = 0.03 * soft(a - 0.07, 0.01) * np.cos(2 * np.pi * v / 0.075)
    return ribs * cage + 0.1 * soft(clavicle - 0.014, 0.003) * soft(0.07 - a, 0.01) + vertebrae
