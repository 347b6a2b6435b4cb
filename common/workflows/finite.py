"""A loss that is no number ends the training, with what is needed to see why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys, convert_to_tensor
from torch import Tensor, nn

from ..checkpoints import save_checkpoint
from ..distributed import rank
from ..errors import InputError, check_switches, listed
from .batches import generators
from .best import undistributed

DUMP = "not_finite.pt"


class CheckFinite:
    """Handler of a trainer: a loss that is NaN or infinite ends it before any weight is changed.

    The batch, the weights, the random states before the network ran and the names of the files are
    in ``not_finite.pt`` of the folder; of the second process of several, whose losses may be those
    of all, in ``not_finite_rank1.pt``, and so on.

    Args:
        check: whether to; False goes on.
        output_dir: the folder.
        network: what is trained.

    Raises:
        InputError: check is neither True nor False; or, in a training, the loss is no number.
    """

    def __init__(self, check: bool, output_dir: str, network: nn.Module) -> None:
        check_switches(check_finite=check)
        self.check = check
        self.folder = Path(output_dir)
        self.network = network

    def attach(self, engine: Engine) -> None:
        if self.check:
            engine.add_event_handler(Events.ITERATION_STARTED, self._keep_generators)
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._look)

    def _keep_generators(self, engine: Engine) -> None:
        self._generators = generators()  # for the network's dropout

    def _look(self, engine: Engine) -> None:
        loss = engine.state.output["loss"].detach()
        if torch.isfinite(loss):
            return
        files = _files(engine.state.batch)
        raise InputError(
            f"The loss is {loss.item()} at iteration {engine.state.iteration} (epoch "
            f"{engine.state.epoch}), in a batch of {listed(files) or 'images in memory'}; allowed "
            f"are finite numbers. {_already(engine.state.output)} {self._dump(engine, files)} "
            "--check_finite False goes on in spite of it."
        )

    def _dump(self, engine: Engine, files: list[str]) -> str:
        """Write what is needed to see why, and say where it is, or why it is nowhere."""
        batch = engine.state.batch
        dump = {
            "loss": engine.state.output["loss"].item(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "files": files,
            "model": undistributed(self.network).state_dict(),
            "generators": self._generators,
            **{key: convert_to_tensor(x) for key, x in batch.items() if isinstance(x, Tensor)},
        }
        path = self.folder / DUMP
        if rank() > 0:
            path = path.with_stem(f"{path.stem}_rank{rank()}")
        try:
            save_checkpoint(dump, path)
        except InputError as error:
            return str(error)
        return f"The batch and the weights are in {path}."


def _already(output: Mapping[str, Any]) -> str:
    """Whether it was so before the loss."""
    parts = {"images": CommonKeys.IMAGE, "network's output": CommonKeys.PRED}
    bad = [name for name, key in parts.items() if not _is_finite(output[key])]
    if not bad:
        return "All values of this batch's images and of the network's output are finite."
    return f"The {' and the '.join(bad)} of this batch hold values that are not finite."


def _is_finite(x: Any) -> bool:
    """Whether all values are, in all tensors of an output."""
    if isinstance(x, Mapping):
        x = list(x.values())
    if isinstance(x, (list, tuple)):
        return all(map(_is_finite, x))
    return not isinstance(x, Tensor) or bool(torch.isfinite(x).all())


def _files(batch: Mapping[str, Any]) -> list[str]:
    names = getattr(batch.get("image"), "meta", {}).get("filename_or_obj", [])
    return [names] if isinstance(names, str) else [str(name) for name in names]
