"""What nnU-Net's deep supervision needs beside MONAI's DeepSupervisionLoss."""

from __future__ import annotations

from monai.losses import DeepSupervisionLoss


def deep_supervision_weights(scales: int) -> list[float]:
    """nnU-Net's weight of the loss at each scale, finest first, for DeepSupervisionLoss.

    1, 1/2, 1/4, ... and 0 for the coarsest, normalised to the sum 1; a single scale has weight 1
    (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, and its released code).

    Raises:
        ValueError: there is no scale.
    """
    if scales < 1:
        raise ValueError(f"scales is {scales}; allowed are whole numbers from 1.")
    weights = [0.5**i for i in range(max(scales - 1, 1))]
    return [w / sum(weights) for w in weights] + [0.0] * (scales - len(weights))


class WeightedDeepSupervisionLoss(DeepSupervisionLoss):
    """MONAI's `DeepSupervisionLoss` with `deep_supervision_weights` of as many scales as come.

    A network of any number of stages, or of one output, is trained without a word on weights.
    """

    def get_weights(self, levels: int = 1) -> list[float]:
        return deep_supervision_weights(levels)
