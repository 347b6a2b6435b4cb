"""What a codebook's prototypes do while they are trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from ..evaluation import prototypes_figure
from .best import undistributed


class CodebookStatistics:
    """Handler of a trainer: how many prototypes of a network's codebook serve, in TensorBoard.

    After each epoch the perplexity of its sites' codes (see `common.blocks.codebook.CodeUsage`) and
    how many prototypes are dead, which served no site of it; every so many epochs, and after the
    last, a picture of the prototypes. In several processes sites are those of this one. Of a
    network without a codebook there is nothing to tell.

    Args:
        network: what is trained; in training its output has `codes`, as
            `common.networks.CodebookMambaUNet`'s.
        log_dir: the folder of TensorBoard's files.
        interval: epochs from one picture to the next.
    """

    def __init__(self, network: nn.Module, log_dir: str, interval: int = 1) -> None:
        self.network = network
        self.log_dir = log_dir
        self.interval = interval
        self._codes: list[Tensor] = []  # of this epoch
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._tell)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _begin(self, engine: Engine) -> None:
        self._codes = []

    def _add(self, engine: Engine) -> None:
        codes = getattr(engine.state.output[CommonKeys.PRED], "codes", None)
        if codes is not None:
            self._codes.append(codes.flatten())

    def _tell(self, engine: Engine) -> None:
        if not self._codes:
            return
        book: Any = undistributed(self.network).codebook
        usage = book.usage(torch.cat(self._codes))
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.log_dir)
        epoch = engine.state.epoch
        self._writer.add_scalar("codebook_perplexity", usage.perplexity, epoch)
        self._writer.add_scalar("codebook_dead", len(usage.dead), epoch)
        if epoch % self.interval == 0 or epoch == engine.state.max_epochs:
            prototypes = book.prototypes.detach().float().cpu().numpy()
            picture = _drawn(prototypes_figure(prototypes, usage.histogram.cpu().numpy()))
            self._writer.add_image("codebook_prototypes", picture, epoch, dataformats="HWC")
        self._writer.flush()

    def _end(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _drawn(figure: Any) -> np.ndarray:
    """A figure's pixels, (h, w, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
