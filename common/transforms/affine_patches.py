"""The patches of a training as nnU-Net draws them: where, turned and scaled how, in one step."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, MultiSampleTrait, Randomizable
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from ..errors import InputError, are_numbers
from ..ignored import IGNORED, is_ignored


class RandAffinePatchesd(Randomizable, MapTransform, MultiSampleTrait):
    """Draw patches of a volume, some of them rotated, some scaled, as nnU-Net 2.8 does.

    A share of each batch is centred on foreground: on a voxel of a class drawn uniformly of those
    that the case has, from the indices that MONAI's `ClassesToIndicesd` left. The others are
    anywhere; where a label has `IGNORED` voxels, centred on one that is labelled. All lie within
    the volume before they are turned. What the turned grid needs is read from the volume itself,
    so that there is padding only beyond the volume. Images are linear; of the label each class is,
    and a voxel has the class with the highest share.

    The batch's first samples are those on foreground, so that an epoch's last batch, which may be
    shorter, has them too. Which sample of its batch a case is follows from how many came before it
    since the random state was set, which a training does for every epoch and every worker.

    Args:
        keys: keys of the images, (channels, ...) in 2D or 3D.
        patch_size: voxels along each axis; of a size of 1 the patch is a slice.
        batch_size: cases of a batch, from 1.
        num_samples: patches of each case, from 1.
        foreground_fraction: of a batch's patches those on foreground, 0 to 1; at least one of
            every batch unless it is 0, which needs no indices.
        rotate_prob, scale_prob: probability of either, drawn independently.
        rotate_range: radians either way, for every angle; None for nnU-Net's: 30 degrees about
            each axis; where the patch is more than 3 times as long as it is thin, 180 degrees
            within its slices alone; in 2D 180 degrees, 15 where one side is more than 1.5 times
            the other.
        scale_range: limits of the step between voxels, the same along all axes, or within the
            slices alone as above; above 1 what is seen is smaller.
        padding_value: of the images beyond the volume. The label is background there.
        label_key: key of the label map (1, ...).
        indices_key: key of the indices, which is left out of what comes out.

    Raises:
        InputError: a number is not as above.
    """

    def __init__(
        self,
        keys: KeysCollection,
        patch_size: Sequence[int],
        batch_size: int,
        num_samples: int = 1,
        foreground_fraction: float = 0.33,
        rotate_prob: float = 0.2,
        rotate_range: float | None = None,
        scale_prob: float = 0.2,
        scale_range: Sequence[float] = (0.7, 1.4),
        padding_value: float = 0.0,
        label_key: Hashable = "label",
        indices_key: Hashable = "label_cls_indices",
    ) -> None:
        super().__init__(keys)
        for name, number in (("batch_size", batch_size), ("num_samples", num_samples)):
            if number < 1:
                raise InputError(f"{name} is {number}; allowed are numbers from 1.")
        if not 0 <= foreground_fraction <= 1:
            raise InputError(f"foreground_fraction is {foreground_fraction}; allowed are 0 to 1.")
        if not are_numbers(scale_range, 2, above=0):
            raise InputError(f"scale_range is {scale_range}; allowed are two numbers above 0.")
        self.patch_size = np.array(patch_size)
        self.num_samples = num_samples
        self.batch = batch_size * num_samples
        anywhere = round(self.batch * (1 - foreground_fraction))
        self.forced = max(1, self.batch - anywhere) if foreground_fraction else 0
        self.planes, limit = _planes(patch_size)
        self.rotate_prob = rotate_prob
        self.rotate_range = limit if rotate_range is None else rotate_range
        self.scale_prob = scale_prob
        self.scale_range = scale_range
        self.padding_value = padding_value
        self.label_key = label_key
        self.indices_key = indices_key
        self._drawn = 0

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandAffinePatchesd:
        super().set_random_state(seed, state)
        self._drawn = 0
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        rest = dict(data)
        indices = rest.pop(self.indices_key) if self.forced else []
        return [self._patch(rest, indices) for _ in range(self.num_samples)]

    def _patch(self, data: dict[Hashable, Any], indices: Sequence[Any]) -> dict[Hashable, Any]:
        label = data[self.label_key]
        forced = self._drawn % self.batch < self.forced
        self._drawn += 1
        start, matrix = self.randomize(label, indices if forced else [])
        patch = dict(data)
        for key in self.key_iterator(patch):
            patch[key] = self._cut(patch[key], start, matrix)
        patch[self.label_key] = self._cut(label, start, matrix, is_label=True)
        return patch

    def randomize(
        self, label: Tensor, indices: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        return self._start(label, indices), self._matrix()

    def _start(self, label: Tensor, indices: Sequence[Any]) -> np.ndarray:
        """The volume's voxel at the patch's corner, before that is turned."""
        shape = np.array(label.shape[1:])
        first = np.minimum(0, (shape - self.patch_size) // 2)  # a smaller volume is in the middle
        last = np.maximum(first, shape - self.patch_size)
        present = [voxels for voxels in indices[1:] if len(voxels)]
        if present:
            candidates = present[self.R.randint(len(present))]
        elif (ignored := is_ignored(_plain(label))).any():
            candidates = (~ignored).flatten().nonzero()[:, 0]
        else:
            candidates = []
        if not len(candidates):
            return self.R.randint(first, last + 1)
        voxel = np.unravel_index(int(candidates[self.R.randint(len(candidates))]), shape)
        return np.clip(np.array(voxel) - self.patch_size // 2, first, last)

    def _matrix(self) -> np.ndarray | None:
        """What takes the patch's axes to the volume's; nothing where the patch is a mere part."""
        rotated = self.R.uniform() < self.rotate_prob
        scaled = self.R.uniform() < self.scale_prob
        matrix = np.eye(len(self.patch_size))
        for plane in self.planes if rotated else []:
            angle = self.R.uniform(-self.rotate_range, self.rotate_range)
            turn = np.eye(len(matrix))
            turn[np.ix_(plane, plane)] = [
                [math.cos(angle), -math.sin(angle)],
                [math.sin(angle), math.cos(angle)],
            ]
            matrix = turn @ matrix
        if scaled:
            matrix[:, sorted({*sum(self.planes, ())})] *= self.R.uniform(*self.scale_range)
        return matrix if rotated or scaled else None

    def _cut(
        self,
        volume: Tensor,
        start: np.ndarray,
        matrix: np.ndarray | None,
        is_label: bool = False,
    ) -> Tensor:
        value = 0.0 if is_label else self.padding_value
        whole = _plain(volume)
        if matrix is None:
            matrix = np.eye(len(start))
            box, padding = _box(whole, start, start + self.patch_size)
            patch = pad(box, padding, value=value) if any(padding) else box.contiguous()
        else:
            middle = start + (self.patch_size - 1) / 2
            reach = np.abs(matrix) @ ((self.patch_size - 1) / 2)
            low = np.maximum(np.floor(middle - reach).astype(int), 0)
            box, _ = _box(whole, low, np.ceil(middle + reach).astype(int) + 1)
            grid = _grid(box, middle - low, matrix, self.patch_size)
            patch = _linear_label(box, grid) if is_label else _linear(box, grid, value)
        if isinstance(volume, MetaTensor):
            meta = {**volume.meta, "affine": self._affine(volume.affine, start, matrix)}
            return MetaTensor(patch, meta=meta)
        return patch

    def _affine(self, of_volume: Tensor, start: np.ndarray, matrix: np.ndarray) -> Tensor:
        """What was applied to the volume is not the patch's: its inverse would be of the whole."""
        middle = (self.patch_size - 1) / 2
        dims = len(start)
        to_volume = torch.eye(len(of_volume)).to(of_volume)
        to_volume[:dims, :dims] = torch.from_numpy(matrix)
        to_volume[:dims, -1] = torch.from_numpy(start + middle - matrix @ middle)
        return of_volume @ to_volume


def through_plane(size: Sequence[int]) -> int | None:
    """The axis across the slices of a patch that is more than 3 times as long as it is thin."""
    if len(size) == 3 and max(size) > 3 * min(size):
        return int(np.argmin(size))
    return None


def _planes(size: Sequence[int]) -> tuple[list[tuple[int, int]], float]:
    """Planes in which nnU-Net rotates a patch, in its order, and how far, in radians."""
    if len(size) not in (2, 3):
        raise InputError(f"patch_size is {list(size)}; allowed are two or three numbers.")
    across = through_plane(size)
    if len(size) == 3 and across is None:
        return [(1, 2), (2, 0), (0, 1)], math.pi / 6
    first, second = (axis for axis in range(len(size)) if axis != across)
    sides = sorted((size[first], size[second]))
    flat = across is None or size[across] == 1
    return [(first, second)], math.pi / 12 if flat and sides[1] > 1.5 * sides[0] else math.pi


def _plain(volume: Tensor) -> Tensor:
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume


def _box(volume: Tensor, low: np.ndarray, high: np.ndarray) -> tuple[Tensor, list[int]]:
    """What a volume (channels, ...) has from low to high, and what it lacks, as `pad` takes it."""
    shape = np.array(volume.shape[1:])
    edges = np.stack([np.maximum(low, 0), np.minimum(high, shape)], axis=1)
    inside = [slice(None), *(slice(*along) for along in edges.tolist())]
    lacking = np.stack([np.maximum(-low, 0), np.maximum(high - shape, 0)], axis=1)
    return volume[tuple(inside)], lacking[::-1].flatten().tolist()


def _grid(box: Tensor, middle: np.ndarray, matrix: np.ndarray, size: np.ndarray) -> Tensor:
    """Where the patch's voxels are in a box, for `grid_sample`: (1, ..., dims)."""
    shape = np.array(box.shape[1:])
    linear = matrix * size / shape[:, None]
    offset = (2 * middle + 1) / shape - 1
    theta = np.concatenate([linear[::-1, ::-1], offset[::-1, None]], axis=1)  # x is the last axis
    where = torch.from_numpy(theta.astype(np.float32))[None]
    return affine_grid(where, [1, 1, *size.tolist()], align_corners=False)


def _linear(box: Tensor, grid: Tensor, beyond: float = 0.0) -> Tensor:
    """(channels, ...) at the grid's points, as if the box went on with one value."""
    sampled = grid_sample((box.float() - beyond)[None], grid, align_corners=False)
    return sampled[0] + beyond


def _linear_label(box: Tensor, grid: Tensor) -> Tensor:
    """The class with the highest share at each point; of equal ones the background."""
    background = torch.ones(1, *grid.shape[1:-1])
    highest = torch.zeros_like(background)
    classes = torch.zeros_like(background, dtype=box.dtype)
    for value in (IGNORED, *range(1, int(box.max()) + 1)):
        mask = box == value
        if mask.any():
            share = _linear(mask, grid)
            background -= share
            classes[share > highest] = value
            highest = torch.maximum(highest, share)
    return classes.masked_fill_(background >= highest, 0)
