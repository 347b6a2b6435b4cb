"""A portal-venous abdominal CT with liver tumours; nothing here is a patient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from .shapes import Array, check_grid, smooth_noise, threshold, tree_level, union

# (start in mm, heading, length, radius) of each root, in the average patient.
_PORTAL_VEIN = (
    ((22, 4, 2), (0.9, -0.1, 0.3), 36, 6.5),
    ((22, 6, 4), (-0.5, 0.7, 0.5), 40, 5.0),
)
_HEPATIC_VEINS = (
    ((24, -6, 52), (0.9, -0.2, -0.4), 38, 5.0),
    ((22, -4, 52), (0.5, 0.7, -0.4), 38, 5.0),
    ((16, 0, 52), (-0.4, 0.9, -0.2), 38, 4.5),
)


class Tissue(IntEnum):
    """What a voxel of a CT phantom shows."""

    AIR = 0
    TABLE = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    LUNG = 5
    BLOOD = 6
    SPLEEN = 7
    KIDNEY = 8
    PANCREAS = 9
    GUT = 10
    LIVER = 11
    TUMOUR = 12


class CTCase(NamedTuple):
    """One abdominal CT; axes to the patient's right, anterior and superior (RAS)."""

    hu: NDArray[np.int16]
    label: NDArray[np.uint8]
    """0 background, 1 liver with its vessels, 2 tumour."""
    tissue: NDArray[np.uint8]
    """``Tissue`` values."""
    diameters_mm: tuple[float, ...]
    """5 to 60, largest first: the sphere of equal volume. A tumour has at least one voxel."""


def ct_case(rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> CTCase:
    """Draw one patient in the middle of a grid.

    Args:
        rng: decides the patient.
        shape: voxels to the right, anterior and superior.
        spacing: mm between voxels, at most 16; the grid must cover 240 x 180 x 120 mm.
    """
    check_grid(shape, spacing, "a patient", 16, (240, 180, 120))
    scene = _Scene(rng, shape, spacing)
    gain = rng.uniform(0.85, 1.15)
    _draw_trunk(rng, scene, gain)
    _draw_organs(rng, scene, gain)
    liver = _draw_liver(rng, scene, gain)
    _draw_gut(rng, scene, gain)
    tumours, diameters = _draw_tumours(rng, scene, liver)

    blurred = ndimage.gaussian_filter(scene.hu, 0.4)
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), (0.7, 0.7, 0.3))
    hu = blurred + grain * (rng.uniform(10, 15) / grain.std())
    label = liver.astype(np.uint8) + tumours
    return CTCase(hu.clip(-1024, 3071).round().astype(np.int16), label, scene.tissue, diameters)


class _Scene:
    """A patient on a voxel grid, filled by painting one shape over the other."""

    def __init__(self, rng: Generator, shape: Sequence[int], spacing: Sequence[float]) -> None:
        self.spacing = tuple(spacing)
        self.axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
        self.mm = np.stack(np.meshgrid(*self.axes, indexing="ij")).astype(np.float32)
        """Offset from the grid's centre, (3, X, Y, Z): right, anterior, superior."""
        warp = np.stack([4 * self.noise(rng, 80) for _ in range(3)])
        shift = rng.uniform((-8, -4, -10), (8, 8, 10))
        self.size = rng.uniform((0.93, 0.9, 0.95), (1.05, 1.08, 1.05))
        """Of the body, relative to the average."""
        self.point = (self.mm + warp - _column(shift)) / _column(self.size)
        """The same from the trunk's centre, in a patient of average size and posture."""
        self.hu = np.full(shape, -1000, np.float32)
        self.tissue = np.full(shape, Tissue.AIR, np.uint8)
        self.taken = np.full(shape, np.inf, np.float32)
        """Level of everything that was placed."""

    def noise(self, rng: Generator, scale: float) -> Array:
        """Smooth noise of unit variance; ``scale`` in mm."""
        return smooth_noise(rng, self.axes, scale)

    def ellipsoid(
        self, centre: ArrayLike, radii: ArrayLike, turn: Sequence[float] = (0, 0, 0)
    ) -> Array:
        """Level of an ellipsoid in the average patient, turned about x, y and z (degrees)."""
        axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() / np.asarray(radii)
        offset = np.tensordot(axes.T.astype(np.float32), self.point - _column(centre), 1)
        return (np.linalg.norm(offset, axis=0) - 1) * float(np.min(radii))

    def paint(self, tissue: Tissue, level: Array, hu: Array | float) -> None:
        """Fill a shape, with partial volume along its surface."""
        inside = np.clip(0.5 - level / self.spacing[0], 0, 1)
        self.hu += inside * (hu - self.hu)
        self.tissue[level < 0] = tissue

    def place(
        self, tissue: Tissue, level: Array, hu: Array | float, gap: float = 1, around: float = 0
    ) -> Array:
        """Paint what of a shape stays ``gap`` mm off all that was placed; return its level.

        ``around`` is a margin in mm that later shapes keep free as well.
        """
        level = np.maximum(level, gap - self.taken)
        self.paint(tissue, level, hu)
        self.taken = np.minimum(self.taken, level - around)
        return level


def _draw_trunk(rng: Generator, scene: _Scene, gain: float) -> None:
    """Skin, fat, muscles, ribs, spine, lung bases and heart; the abdominal cavity stays free."""
    x, y, z = scene.point
    side, power = np.abs(x), 2.4
    radius = ((side / 155) ** power + np.abs(y / 110) ** power) ** (1 / power) + 1e-3
    slope = np.hypot((side / 155 / radius) ** 1.4 / 155, (np.abs(y) / 110 / radius) ** 1.4 / 110)
    depth = (1 - radius) / np.maximum(slope, 1e-3)
    fat = rng.uniform(9, 22) * (1 + 0.2 * scene.noise(rng, 60))
    cavity = fat + 12 - depth
    scene.paint(Tissue.TABLE, np.abs(y + 116 - x**2 / 1300) - 2.5, -250)
    scene.paint(Tissue.MUSCLE, -depth, 20)
    scene.paint(Tissue.FAT, 2.5 - depth, -105)
    scene.paint(Tissue.MUSCLE, fat - depth, 55)
    scene.paint(Tissue.FAT, cavity, -100)

    angle = np.arctan2(side, -y)
    along = np.abs((z + 50 * angle + rng.uniform(0, 27)) % 27 - 13.5)
    rib = np.hypot(depth - fat - 6.5, 0.7 * along) - 3.4
    costal_arch = np.maximum(42 * angle - 75 - z, 20 - 60 * angle)
    scene.paint(Tissue.BONE, np.maximum(rib, costal_arch), 330)

    lateral = np.where(side > 65, (side - 65) / 78, (side - 65) / 150)
    dome = rng.uniform(55, 68) + 6 * np.tanh(x / 40) - 70 * (lateral**2 + ((y - 12) / 100) ** 2)
    lung = np.maximum(np.maximum(dome - z, cavity), 24 - side)
    scene.paint(Tissue.LUNG, lung, -830 + 40 * scene.noise(rng, 12))
    heart = np.maximum(scene.ellipsoid((-24, 28, 98), (60, 44, 45), (0, 20, 20)), dome - z)
    scene.paint(Tissue.MUSCLE, heart, 100)
    scene.paint(Tissue.BLOOD, heart + 9, 40 + 100 * gain)
    scene.taken = np.minimum(-cavity, dome - z)

    for s in (-1, 1):
        scene.paint(Tissue.MUSCLE, scene.ellipsoid((34 * s, -73, 0), (25, 17, np.inf)), 58)
        psoas = scene.ellipsoid((36 * s, -44, -100), (15, 17, 65), (0, -12 * s, 0))
        scene.place(Tissue.MUSCLE, psoas, 60)
    from_middle = np.abs((z + rng.uniform(0, 32)) % 32 - 16)
    arch = scene.ellipsoid((0, -66, 0), (16, 14, np.inf))
    spinous = scene.ellipsoid((0, -84, 0), (4, 15, np.inf))
    transverse = scene.ellipsoid((0, -62, 0), (40, 5, np.inf))
    for process, height in ((arch, 11), (spinous, 9), (transverse, 6)):
        scene.paint(Tissue.BONE, np.maximum(process, from_middle - height), 400)
    scene.paint(Tissue.MUSCLE, scene.ellipsoid((0, -66, 0), (9, 8, np.inf)), 25)
    column = scene.ellipsoid((0, -40, 0), (23, 17, np.inf))
    scene.place(Tissue.MUSCLE, column, 85, gap=-np.inf)
    vertebra = np.maximum(column, from_middle - 13)
    scene.paint(Tissue.BONE, vertebra, 450)
    scene.paint(Tissue.BONE, vertebra + 2.5, 190 + 25 * scene.noise(rng, 8))


def _draw_organs(rng: Generator, scene: _Scene, gain: float) -> None:
    """Aorta, inferior vena cava, kidneys, spleen and gallbladder."""
    for centre, radii, hu in (((-11, -13, 0), (10, 10), 115), ((21, -13, 0), (12, 9), 100)):
        vessel = scene.ellipsoid(centre, (*radii, np.inf))
        scene.place(Tissue.BLOOD, vessel, 40 + hu * gain, gap=-np.inf)
    for s in (-1, 1):
        middle = rng.normal((63 * s, -44, -45 - 8 * s), (2, 2, 6))
        shape = scene.ellipsoid(middle, rng.normal((27, 25, 55), (1.5, 1.5, 3)), (8, 12 * s, 0))
        kidney = scene.place(Tissue.KIDNEY, shape, 35 + 150 * gain)
        perirenal_fat = scene.ellipsoid(middle - (0, 24, 0), (34, 52, 64), (8, 12 * s, 0))
        scene.taken = np.minimum(scene.taken, perirenal_fat)
        medulla = 35 + 105 * gain + 20 * scene.noise(rng, 10)
        scene.paint(Tissue.KIDNEY, kidney + 7, medulla)
        sinus = scene.ellipsoid(middle - (14 * s, -3, 0), (14, 8, 22), (0, 12 * s, 0))
        scene.paint(Tissue.FAT, np.maximum(sinus, kidney), -70)
    spleen = scene.ellipsoid(rng.normal((-106, -34, 22), 4), rng.normal((34, 50, 52), 3))
    spleen += 2 * scene.noise(rng, 30)
    scene.place(Tissue.SPLEEN, spleen, 45 + 75 * gain, around=2)
    gallbladder = scene.ellipsoid(rng.normal((50, 50, -36), 4), (13, 16, 28), (25, 0, 0))
    scene.place(Tissue.GUT, gallbladder, 8)


def _draw_liver(rng: Generator, scene: _Scene, gain: float) -> Array:
    """Mask of a liver of about 900 to 1900 mL, with portal and hepatic veins."""
    right = scene.ellipsoid(rng.normal((72, -2, 6), 3), rng.normal((76, 84, 82), 4))
    tip = scene.ellipsoid(rng.normal((92, 2, -42), 6), rng.normal((42, 58, 58), 6))
    left = scene.ellipsoid(rng.normal((0, 42, 30), 4), rng.normal((80, 32, 31), 5), (0, -14, 8))
    hollow = scene.ellipsoid(rng.normal((12, 14, -72), 5), (60, 72, 58))
    lobes = union(union(right, tip, 18), left, 18) + 5 * scene.noise(rng, 45)
    lobes = -union(-lobes, hollow, 14)
    volume = np.clip(1.4e6 * scene.size.prod() * rng.uniform(0.7, 1.3), 0.9e6, 1.9e6)
    shape = lobes - threshold(lobes[scene.taken > 2], volume / math.prod(scene.spacing))
    pieces, _ = ndimage.label(ndimage.binary_opening(np.maximum(shape, 2 - scene.taken) < 0))
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    shape[~ndimage.binary_dilation(pieces == largest)] = np.inf
    parenchyma = 52 + 56 * gain + 4 * scene.noise(rng, 15)
    liver = scene.place(Tissue.LIVER, shape, parenchyma, gap=2) < 0
    for veins in (_PORTAL_VEIN, _HEPATIC_VEINS):
        level = tree_level(rng, veins, 1.2, scene.point, liver)
        scene.paint(Tissue.BLOOD, level, 45 + 115 * gain)
    return liver


def _draw_gut(rng: Generator, scene: _Scene, gain: float) -> None:
    """Pancreas, stomach, colon and small bowel, the last three with fluid or stool below gas."""
    pancreas = scene.ellipsoid((-18, 12, -14), (62, 8, 12), (0, 15, -18))
    scene.place(Tissue.PANCREAS, pancreas + 3 * scene.noise(rng, 12), 40 + 60 * gain)
    loops = rng.uniform((-80, -10, -110), (80, 70, -25), (16, 3)), rng.uniform(13, 24, (16, 3))
    shapes = [
        ((-62, 28, 28), (46, 42, 48)),
        ((106, 5, -88), (22, 22, 45)),
        ((-110, -15, -55), (17, 17, 70)),
        ((0, 60, -62), (85, 18, 18)),
        *zip(*loops, strict=True),
    ]
    for centre, radii in shapes:
        bowel = scene.ellipsoid(centre, radii) + 2 * scene.noise(rng, 20)
        wall = scene.place(Tissue.GUT, bowel, 70)
        content = rng.choice([12, 35]) + 12 * scene.noise(rng, 8)
        scene.paint(Tissue.GUT, wall + 3, content)
        surface = centre[1] + rng.uniform(-0.2, 1.2) * radii[1]
        scene.paint(Tissue.GUT, np.maximum(wall + 3, surface - scene.point[1]), -900)


def _draw_tumours(rng: Generator, scene: _Scene, liver: Array) -> tuple[Array, tuple[float, ...]]:
    """Mask and diameters (mm) of one to five separate tumours, the largest placed first."""
    wanted = np.sort(np.exp(rng.uniform(np.log(5), np.log(60), rng.integers(1, 6))))[::-1]
    box = ndimage.find_objects(liver.astype(np.uint8))[0]
    tumours = np.zeros_like(liver)
    diameters = []
    for diameter in wanted:
        free = liver & ~ndimage.binary_dilation(tumours, np.ones((3, 3, 3)))
        if not free.any():
            break
        room = np.zeros(liver.shape)
        padded = np.pad(free[box], 1)
        room[box] = ndimage.distance_transform_edt(padded, scene.spacing)[1:-1, 1:-1, 1:-1]
        diameter = float(np.clip(diameter, 5, max(5, 1.8 * room.max())))
        spots = np.argwhere(room >= min(0.45 * diameter, room.max()))
        at = (slice(None), *rng.choice(spots))
        offset = scene.mm - _column(scene.mm[at])
        stretch = Rotation.from_quat(rng.standard_normal(4)).as_matrix() * rng.uniform(0.85, 1.2, 3)
        distance = np.linalg.norm(np.tensordot(stretch.T, offset, 1), axis=0)
        distance *= 1 + 0.12 * scene.noise(rng, max(8, 0.4 * diameter))
        volume = np.pi / 6 * diameter**3 / math.prod(scene.spacing)
        level = np.where(free, distance - threshold(distance[free], volume), np.inf)
        _paint_tumour(rng, scene, level, diameter)
        tumours |= level < 0
        diameters.append(diameter)
    return tumours, tuple(diameters)


def _paint_tumour(rng: Generator, scene: _Scene, level: Array, diameter: float) -> None:
    core = rng.uniform(40, 78) + 5 * scene.noise(rng, 8)
    look = rng.choice(["plain", "rim", "necrotic"]) if diameter > 15 else "plain"
    if look == "rim":
        scene.paint(Tissue.TUMOUR, level, 130)
    scene.paint(Tissue.TUMOUR, level + 3 * (look == "rim"), core)
    if look == "necrotic":
        scene.paint(Tissue.TUMOUR, level + 0.25 * diameter, 18)


def _column(vector: ArrayLike) -> Array:
    return np.asarray(vector, np.float32).reshape(3, 1, 1, 1)
