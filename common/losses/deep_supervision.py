"""What the papers' deep supervision needs beside MONAI's DeepSupervisionLoss."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events
from monai.losses import DeepSupervisionLoss

_logger = logging.getLogger(__name__)


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


class DeepSupervisionDecay:
    """Handler that makes a total of scales rely on the finest more and more.

    The total is the finest scale's loss + alpha * the sum of the others', where
    alpha = start * factor ** (epochs before this one // period) is set, and logged, as each epoch
    starts (ELANRes-MSCA-UNet, section 2.3). It depends on the trainer's epoch alone, so that a
    resumed training goes on with it.

    Args:
        loss: the trainer's loss function, whose weights are set.
        start: alpha of the first epoch.
        factor: of alpha after each period, above 0 and at most 1.
        period: epochs.
        scales: how many the network gives.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        loss: DeepSupervisionLoss,
        start: float = 0.4,
        factor: float = 0.8,
        period: int = 30,
        scales: int = 4,
    ) -> None:
        if start < 0:
            raise ValueError(f"start is {start}; allowed are numbers from 0.")
        if not 0 < factor <= 1:
            raise ValueError(f"factor is {factor}; allowed is 0 < factor <= 1.")
        for name, value in (("period", period), ("scales", scales)):
            if value < 1:
                raise ValueError(f"{name} is {value}; allowed are whole numbers from 1.")
        self.loss = loss
        self.start = start
        self.factor = factor
        self.period = period
        self.scales = scales
        self._told: float | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        alpha = self.start * self.factor ** ((engine.state.epoch - 1) // self.period)
        self.loss.weights = [1.0, *[alpha] * (self.scales - 1)]
        if alpha != self._told:
            self._told = alpha
            _logger.info(f"Weight of the coarser scales' losses: {alpha:g}")
