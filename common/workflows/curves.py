"""What a training tells while it runs: a line an epoch, a table and a picture of its curves."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import Evaluator, IterationEvents
from torch.optim import Optimizer

from ..distributed import rank
from ..files import remove_partial, replacing
from .best import SaveBest

_logger = logging.getLogger(__name__)

TABLE = "learning_curves.csv"
PICTURE = "learning_curves.png"
_SECONDS = 5.0  # between two pictures: drawing takes a part of one
_NOT_DRAWN = {"epoch", "seconds", "validation_seconds", "learning_rate"}


class LearningCurves:
    """Handler of a trainer: one line of the log an epoch, ``learning_curves.csv`` and ``.png``.

    A training that goes on has the rows of the epochs before it.

    Args:
        output_dir: the folder of the table and the picture.
        optimizer: whose learning rate is told.
        evaluator: the validation, whose metrics are told where it ran.
        best: its best score.
    """

    def __init__(
        self, output_dir: str, optimizer: Optimizer, evaluator: Evaluator, best: SaveBest
    ) -> None:
        self.folder = Path(output_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.best = best
        self.rows: list[dict[str, Any]] = []
        self._losses: list[Any] = []  # of this epoch
        self._validation: dict[str, float] = {}
        self._goes_on = False
        self._begin()

    def attach(self, engine: Engine) -> None:
        if rank() > 0:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end)
        self.evaluator.add_event_handler(Events.STARTED, self._start_validation)
        self.evaluator.add_event_handler(Events.COMPLETED, self._end_validation)

    def state_dict(self) -> dict[str, Any]:
        """The rows of the epochs that are finished, and what there is of the next one."""
        return {
            "rows": [dict(row) for row in self.rows],
            "losses": [float(x) for x in self._losses],
            "seconds": time.monotonic() - self._began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._losses = list(state["losses"])
        self._began = time.monotonic() - state["seconds"]
        self._goes_on = bool(self._losses)

    def _start(self, engine: Engine) -> None:
        """Before a state is loaded, if one is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(self.folder)
        self.rows = []
        self._drawn = 0.0
        self._goes_on = False

    def _start_epoch(self, engine: Engine) -> None:
        if not self._goes_on:
            self._begin()
        self._goes_on = False

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._losses = []
        self._validation = {}
        self._seconds = 0.0

    def _add_loss(self, engine: Engine) -> None:
        self._losses.append(engine.state.output["loss"].detach())

    def _start_validation(self, engine: Engine) -> None:
        self._validation_began = time.monotonic()

    def _end_validation(self, engine: Engine) -> None:
        self._seconds = time.monotonic() - self._validation_began
        self._validation = scalars(engine.state.metrics)

    def end_epoch(self, engine: Engine) -> None:
        """Tell of an epoch that is trained, and validated if it is to be."""
        state = engine.state
        loss = sum(float(x) for x in self._losses) / max(1, len(self._losses))
        seconds = time.monotonic() - self._began
        row = {
            "epoch": state.epoch,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss,
            **scalars(state.metrics),
            **self._validation,
            "seconds": round(seconds, 3),
            "validation_seconds": round(self._seconds, 3),
        }
        self.rows.append(row)
        measured = {k: v for k, v in row.items() if k not in _NOT_DRAWN}
        if self._validation:
            measured["best"] = f"{self.best.score:.4g} in epoch {self.best.epoch}"
        told = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in measured.items()]
        _logger.info(
            "Epoch %d of %d in %.1f s%s: %s",
            state.epoch,
            state.max_epochs,
            seconds,
            f" ({self._seconds:.1f} s of it validation)" if self._validation else "",
            ", ".join(told),
        )
        self._begin()
        self._try(self._write)
        if time.monotonic() - self._drawn > _SECONDS:
            self._try(self._draw)

    def _end(self, engine: Engine) -> None:
        if self.rows:
            self._try(self._draw)

    def _try(self, write: Callable[[], None]) -> None:
        """A training of days does not end for a picture."""
        try:
            write()
        except OSError as error:
            _logger.warning("The curves in %s cannot be written (%s).", self.folder, error)

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.folder / TABLE) as partial, partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def _draw(self) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4), layout="constrained")
        FigureCanvasAgg(figure)
        losses, metrics = figure.subplots(1, 2)
        names = dict.fromkeys(name for row in self.rows for name in row)
        for name in names:
            told = [row for row in self.rows if row.get(name) not in (None, "")]
            points = [(int(row["epoch"]), float(row[name])) for row in told]
            if name not in _NOT_DRAWN and points:
                axes = losses if "loss" in name else metrics
                axes.plot(*zip(*points, strict=True), label=name, marker=".")
        for axes in (losses, metrics):
            axes.set_xlabel("epoch")
            if axes.lines:
                axes.legend(fontsize="x-small")
        with replacing(self.folder / PICTURE) as partial:
            figure.savefig(partial, format="png", dpi=100)
        self._drawn = time.monotonic()


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Those of an engine's metrics that are one number."""
    found = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found
