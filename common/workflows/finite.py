"""A loss that is no number ends the training, with what is needed to see why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from ..checkpoints import save_checkpoint
from ..errors import InputError, listed

DUMP = "not_finite.pt"


class CheckFinite:
    """Handler of a trainer: a loss that is NaN or infinite ends it before any weight is changed.

    The batch, the weights and the names of the files are in ``not_finite.pt`` of the folder.

    Args:
        check: whether to; False goes on.
        output_dir: the folder.
        network: what is trained.

    Raises:
        InputError: check is neither True nor False; or, in a training, the loss is no number.
    """

    def __init__(self, check: bool, output_dir: str, network: nn.Module) -> None:
        if check not in (True, False):
            raise InputError(f"check_finite is {check!r}; allowed are True and False.")
        self.check = check
        self.path = Path(output_dir) / DUMP
        self.network = network

    def attach(self, engine: Engine) -> None:
        if self.check:
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._look)

    def _look(self, engine: Engine) -> None:
        loss = engine.state.output["loss"].detach()
        if torch.isfinite(loss):
            return
        batch = engine.state.batch
        files = _files(batch)
        dump = {
            "loss": loss.item(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "files": files,
            "model": self.network.state_dict(),
            **{key: convert_to_tensor(x) for key, x in batch.items() if isinstance(x, Tensor)},
        }
        save_checkpoint(dump, self.path)
        raise InputError(
            f"The loss is {loss.item()} at iteration {engine.state.iteration} (epoch "
            f"{engine.state.epoch}), in a batch of {listed(files) or 'images in memory'}; allowed "
            f"are finite numbers. The batch and the weights are in {self.path}; --check_finite "
            "False goes on in spite of it."
        )


def _files(batch: Mapping[str, Any]) -> list[str]:
    names = getattr(batch.get("image"), "meta", {}).get("filename_or_obj", [])
    return [names] if isinstance(names, str) else [str(name) for name in names]
