"""The best weights of a training, and when they are looked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..checkpoints import save_checkpoint
from ..errors import InputError
from .settings import write_settings

FILE = "model.pt"
SETTINGS = "settings.json"


class SaveBest:
    """Handler of a validation: the weights of the largest key metric are ``model.pt``.

    Args:
        ckpt_dir: the folder.
        network: whose weights are kept; with `settings` as an attribute of the state dict, so that
            for MONAI it is a state dict as any other.
        settings: of `running_settings`.
    """

    def __init__(self, ckpt_dir: str, network: nn.Module, settings: Mapping[str, Any]) -> None:
        self.path = Path(ckpt_dir) / FILE
        self.network = network
        self.settings = dict(settings)
        self.score: float | None = None
        self.epoch = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._compare)

    def save(self) -> None:
        """Write the weights as they are, and the settings as a config beside them.

        Raises:
            InputError: as `save_checkpoint`.
        """
        weights = undistributed(self.network).state_dict()
        weights.settings = self.settings  # type: ignore[attr-defined]
        save_checkpoint(weights, self.path)
        settings = self.path.with_name(SETTINGS)
        try:
            write_settings(settings, self.settings)
        except OSError as error:
            raise InputError(f"The settings {settings} cannot be written ({error}).") from error

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.score, self.epoch = state["score"], state["epoch"]

    def _compare(self, engine: Engine) -> None:
        score = float(engine.state.metrics[engine.state.key_metric_name])
        if self.score is None or math.isnan(self.score) or score > self.score:
            self.score, self.epoch = score, engine.state.epoch
            self.save()


class ValidateLast:
    """Handler of a trainer, after that which validates every few epochs: so is the last one.

    Its weights may be the best, and a short training is to have a score.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate)

    def _validate(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(engine.state.epoch)


def undistributed(network: nn.Module) -> nn.Module:
    """The network itself, where DistributedDataParallel wraps it."""
    return network.module if isinstance(network, DistributedDataParallel) else network
