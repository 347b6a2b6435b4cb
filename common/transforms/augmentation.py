"""Changes of intensities as nnU-Net draws them, where MONAI's transforms draw otherwise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import AdjustContrast, MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import InputError, are_numbers
from .affine_patches import through_plane


class _RandChannelsd(RandomizableTransform, MapTransform):
    """Change some channels of an image, each in its own way.

    Args:
        keys: keys of the images, (channels, ...) in 2D or 3D.
        prob: probability that any is.
        channel_prob: that a channel then is.
    """

    def __init__(self, keys: KeysCollection, prob: float, channel_prob: float = 1.0) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.channel_prob = channel_prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return changed
        for key in self.key_iterator(changed):
            image = changed[key]
            channels = [
                self._change(channel) if self.R.uniform() < self.channel_prob else channel
                for channel in convert_to_tensor(image, track_meta=False).split(1)
            ]
            # MONAI's steps within may have made of a channel an image of its own, with no affine.
            together = convert_to_tensor(torch.cat(channels), track_meta=False)
            changed[key] = convert_to_dst_type(together, image)[0]
        return changed

    @abstractmethod
    def _change(self, channel: Tensor) -> Tensor:
        """A channel (1, ...) in a way that is drawn here; it is left as it is."""


class RandGaussianBlurd(_RandChannelsd):
    """Blur, a sigma drawn for each axis; MONAI's `RandGaussianSmoothd` has zeros at the borders.

    Args:
        keys, prob, channel_prob: probability of the image, then of each of its channels.
        sigma: limits of the sigmas, in voxels.

    Raises:
        InputError: they are not two numbers above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        sigma: Sequence[float] = (0.5, 1.0),
        prob: float = 0.2,
        channel_prob: float = 0.5,
    ) -> None:
        super().__init__(keys, prob, channel_prob)
        if not are_numbers(sigma, 2, above=0):
            raise InputError(f"sigma is {sigma!r}; allowed are two numbers above 0.")
        self.sigma = sigma

    def _change(self, channel: Tensor) -> Tensor:
        sigmas = self.R.uniform(*self.sigma, size=channel.ndim - 1)
        kernels = [
            gaussian_1d(torch.tensor(sigma), truncated=3, approx="sampled", normalize=True)
            for sigma in sigmas
        ]
        return separable_filtering(channel[None], kernels, mode="reflect")[0]


class RandLowResolutiond(_RandChannelsd):
    """Take voxels away and interpolate what is left, one factor for all axes.

    Where the image is more than 3 times as long as it is thin, its slices stay as many; MONAI's
    `RandSimulateLowResolutiond` takes of these away too, and of all channels alike.

    Args:
        keys, prob, channel_prob: probability of the image, then of each of its channels.
        zoom_range: limits of what is left along an axis, 1 being all.

    Raises:
        InputError: they are not two numbers above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        zoom_range: Sequence[float] = (0.5, 1.0),
        prob: float = 0.25,
        channel_prob: float = 0.5,
    ) -> None:
        super().__init__(keys, prob, channel_prob)
        if not are_numbers(zoom_range, 2, above=0):
            raise InputError(f"zoom_range is {zoom_range!r}; allowed are two numbers above 0.")
        self.zoom_range = zoom_range

    def _change(self, channel: Tensor) -> Tensor:
        shape = channel.shape[1:]
        zoom = self.R.uniform(*self.zoom_range)
        across = through_plane(shape)
        left = [n if axis == across else max(1, round(n * zoom)) for axis, n in enumerate(shape)]
        fewer = interpolate(channel[None], left, mode="nearest-exact")
        return interpolate(fewer, shape, mode="trilinear" if len(shape) == 3 else "bilinear")[0]


class RandGammad(_RandChannelsd):
    """Raise intensities, from 0 to 1 within the image, to a power; mean and deviation stay.

    MONAI's `RandAdjustContrastd` draws the power uniformly, and the same for all channels; nnU-Net
    draws it below 1 as often as above.

    Args:
        keys, prob: see there.
        gamma: limits of the power, one below and one above 1.
        invert_image: whether the highest intensity counts as 0, as MONAI's.

    Raises:
        InputError: the limits are not two numbers above 0.
    """

    def __init__(
        self,
        keys: KeysCollection,
        gamma: Sequence[float] = (0.7, 1.5),
        prob: float = 0.3,
        invert_image: bool = False,
    ) -> None:
        super().__init__(keys, prob)
        if not are_numbers(gamma, 2, above=0):
            raise InputError(f"gamma is {gamma!r}; allowed are two numbers above 0.")
        self.gamma = gamma
        self.invert_image = invert_image

    def _change(self, channel: Tensor) -> Tensor:
        low, high = self.gamma
        gamma = self.R.uniform(low, 1) if self.R.uniform() < 0.5 else self.R.uniform(1, high)
        return AdjustContrast(gamma, self.invert_image, retain_stats=True)(channel)
