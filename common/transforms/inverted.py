"""From a network's logits to the label map of the image as its file has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform
from torch import Tensor

from .. import scratch
from .slabs import Before, before_resampling

LEVELS = 255  # of a probability


class InvertedLabelsd(MapTransform):
    """Logits to the label map on the grid and in the orientation of the image's file.

    Logits become probabilities, these are brought back to the image's grid, interpolated as in
    `Invertd`, and there become labels. Where all classes' probabilities take more memory than
    `in_memory`, that is done slab by slab on the grid that the image had before it was resampled;
    what preprocessing did before that, turning and cropping, is then undone with the label map,
    to which it does the same. The label map is MONAI's whole chain's but for ties.

    For that the resampling has to be the last of the preprocessing that moves voxels, a `Spacingd`
    or a `Resized` that keeps one axis; after any other the whole is done at once.

    Args:
        keys: keys of the logits, (classes, ...).
        transform: the preprocessing that was done to the image.
        probabilities: what makes of ``{key: logits}`` probabilities, voxel by voxel; MONAI's
            `Activationsd`.
        labels: what makes of them label maps (1, ...), or masks of regions (regions, ...), voxel by
            voxel; `AsDiscreted` with argmax, or such as `NestedLabelsd`. Outside of what was
            cropped all probabilities are 0.
        orig_keys: key of the image, (channels, ...), with its trace.
        probabilities_key: where the probabilities go, (classes, ...) in 255ths, uint8; None leaves
            them out.
        in_memory: bytes of probabilities that are worked on at once.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transform: InvertibleTransform,
        probabilities: Callable[[dict], dict],
        labels: Callable[[dict], dict],
        orig_keys: Hashable = "image",
        probabilities_key: Hashable | None = None,
        in_memory: int = scratch.IN_MEMORY,
    ) -> None:
        super().__init__(keys)
        self.linear, self.nearest = (
            Invertd(keys, transform, orig_keys=orig_keys, nearest_interp=nearest)
            for nearest in (False, True)
        )
        self.probabilities = probabilities
        self.labels = labels
        self.orig_key = orig_keys
        self.probabilities_key = probabilities_key
        self.in_memory = in_memory

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            image, logits = done[self.orig_key], done.pop(key)
            axis = scratch.slowest_axis(logits, 1) - 1

            def prepare(part: Tensor, key: Hashable = key, image: Tensor = image) -> Tensor:
                part = self.probabilities({key: part.to(image.device)})[key]
                return part.as_tensor() if isinstance(part, MetaTensor) else part

            before = before_resampling(image, axis, prepare)
            size = logits.shape[1:] if before is None else before.size
            if before is None or len(logits) * math.prod(size) * 4 <= self.in_memory:
                done |= self._at_once(key, logits, image)
            else:
                done |= self._by_slabs(key, logits, image, before)
        return done

    def _at_once(self, key: Hashable, logits: Tensor, image: Tensor) -> dict[Hashable, Any]:
        item = self.linear(self.probabilities({key: MetaTensor(logits)}) | {self.orig_key: image})
        labels = self.labels({key: item[key]})[key].to(torch.uint8)
        if self.probabilities_key is None:
            return {key: labels}
        return {key: labels, self.probabilities_key: _levels(item[key])}

    def _by_slabs(
        self, key: Hashable, logits: Tensor, image: MetaTensor, before: Before
    ) -> dict[Hashable, Any]:
        logits = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        shape = (len(logits), *before.size)
        labels = levels = None
        if self.probabilities_key is not None:
            levels = scratch.zeros(shape, 0, torch.uint8, in_memory=self.in_memory)
        for part in scratch.slabs(shape, before.axis + 1):
            slab = before.slab(logits, part)
            here = scratch.along(before.axis + 1, part)
            label = self.labels({key: slab})[key].to(torch.uint8)
            if labels is None:
                shape_of_labels = (len(label), *before.size)
                labels = torch.empty(shape_of_labels, dtype=torch.uint8, device=label.device)
            labels[here] = label
            if levels is not None:
                levels[here] = _levels(slab).cpu()
                scratch.release(levels)
            scratch.release(logits)
        # There the resampling that is undone next does nothing.
        there = MetaTensor(
            torch.empty(0), before.affine, dict(image.meta), image.applied_operations
        )

        def undo(volume: Tensor) -> MetaTensor:
            back = self.nearest({key: MetaTensor(volume), self.orig_key: there})[key]
            return back.to(torch.uint8)

        assert labels is not None
        done = {key: undo(labels)}
        if levels is not None:
            whole = None
            for number, level in enumerate(levels.split(1)):
                back = undo(level)
                if whole is None:
                    whole = scratch.zeros(
                        (len(levels), *back.shape[1:]), 0, torch.uint8, in_memory=self.in_memory
                    )
                whole[number] = back.as_tensor()[0]
                scratch.release(levels, whole)
            done[self.probabilities_key] = MetaTensor(whole, meta=done[key].meta)
        return done


def _levels(probabilities: Tensor) -> Tensor:
    return (probabilities * LEVELS).round().to(torch.uint8)
