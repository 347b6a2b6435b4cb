"""The mean over the flips of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from .sums import Mean


class FlipInferer(Inferer):
    """Mean of another inferer's logits over the flips of the image, each flipped back.

    Of n axes there are 2 ** n flips, the image as it is among them; without axes the logits are
    the other inferer's.

    Args:
        inferer: what is applied to each flip; its output has the image's spatial axes.
        axes: spatial axes, counted from 0.

    Raises:
        ValueError: an axis occurs twice, or is negative.
    """

    def __init__(self, inferer: Inferer, axes: Sequence[int]) -> None:
        super().__init__()
        if len(set(axes)) < len(axes) or any(axis < 0 for axis in axes):
            raise ValueError(f"axes is {list(axes)}; allowed are different numbers from 0.")
        self.inferer = inferer
        self.axes = list(axes)

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Logits (b, classes, ...) of images (b, channels, ...)."""
        logits = self.inferer(inputs, network, *args, **kwargs)
        if not self.axes:
            return logits
        mean = Mean(logits)
        del logits  # what is on disk need not be there twice
        for flip in ([axis + 2 for axis in flip] for flip in _subsets(self.axes) if flip):
            mean.add(self.inferer(inputs.flip(flip), network, *args, **kwargs), flip)
        return mean.result()


def _subsets(items: Sequence[int]) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(items, n) for n in range(len(items) + 1)))
