"""Trainings that can be continued: what is kept of them, and how they go on.

The random numbers of an epoch depend on the seed, the epoch and the process alone: an epoch that
is begun anew after a crash is the epoch that was lost. So the state between two epochs is that of
the network, the optimiser and the schedule; within one, the generators' states are added.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.engines import Evaluator
from torch import nn

from ..checkpoints import load_checkpoint, save_checkpoint
from ..errors import InputError, listed
from .batches import Batches, generators, rank, ranks
from .best import SaveBest, undistributed
from .curves import scalars
from .settings import running_config

_logger = logging.getLogger(__name__)

# MONAI Label takes the *.pt of the shortest name for the model: it has to be longer.
LAST = "last_epoch.pt"
STOPPED = 75  # the exit code of a training that SIGTERM ended: EX_TEMPFAIL, "try again"

# Ids of train.json that say where and how fast a training runs, not what it learns; and those of
# data, of which the names of the cases are compared.
_MAY_DIFFER = (
    *("imports", "bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "checkpoint", "typed"),
    *("split_file", "cases", "exclude", "split", "split_seed", "fold", "num_folds"),
    *("device", "amp", "max_epochs", "val_interval", "val_cases", "sw_batch_size", "overlap"),
    *("cache", "cache_num", "num_workers", "resume", "strict", "check_finite", "pretrained"),
    *(
        "settings",
        "stated",
        "label_names",
        "network",
        "precision",
        "validate",
        "initialize",
        "run",
        "finalize",
        "_meta_",
    ),
    *("train#dataset", "train#dataloader", "train#handlers", "train#trainer", "train#key_metric"),
    *("train#postprocessing", "tracking", "tracking_uri", "experiment_name", "run_name"),
)


class Stopped(SystemExit):
    """The end of a training that was asked for by SIGTERM, with the exit code `STOPPED`."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = STOPPED


class TrainingState:
    """Handler of a trainer: its state, on disk after every epoch, and how to go on from there.

    ``last_epoch.pt`` in `ckpt_dir` appears whole or not at all, so a training that is killed at any
    moment loses at most one epoch. On a CPU, and with as many threads and processes, one that goes
    on ends with the weights that it would have had. SIGTERM, by which a cluster warns, keeps the
    state within an epoch, too, and ends the process with the exit code 75.

    It comes after the handler that validates. Where nothing was validated, the last weights are
    kept as the best ones.

    Args:
        ckpt_dir: the folder, which one training at a time may use.
        resume: go on from the state in there.
        seed: of all random numbers.
        network, optimizer, lr_scheduler: what is trained.
        evaluator: the validation.
        best: keeps the best weights.

    Raises:
        InputError: resume is neither True nor False; or, when the training starts, there is nothing
            to go on from, it is of another training, or another process trains in the folder; or
            later, the state cannot be written.
    """

    def __init__(
        self,
        ckpt_dir: str,
        resume: bool,
        seed: int,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Evaluator,
        best: SaveBest,
    ) -> None:
        if resume not in (True, False):
            raise InputError(f"resume is {resume!r}; allowed are True and False.")
        self.path = Path(ckpt_dir) / LAST
        self.resume = resume
        self.seed = seed
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.evaluator = evaluator
        self.best = best
        self._recipe = _recipe(running_config())
        self._lock = FileLock(Path(ckpt_dir) / ".training.lock", timeout=0)
        self._asked_to_stop = False
        self._validating = False

    def attach(self, engine: Engine) -> None:
        self._batches = Batches(engine, self.seed)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._end)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._explain)

    def _start(self, engine: Engine) -> None:
        if rank() == 0:
            self._take_folder()
        self._engine, self._asked_to_stop, self._first = engine, False, True
        self._cases = _names(getattr(getattr(engine, "data_loader", None), "dataset", None))
        engine.state.dataloader = self._batches
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._previous = signal.signal(signal.SIGTERM, self._ask_to_stop)
        if not self.evaluator.has_event_handler(self._stop_if_asked):
            self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_asked)
        if self.resume:
            self._load(engine)
        elif self.path.is_file() and rank() == 0:
            _logger.warning(
                "The state of an earlier training in %s is replaced: --resume True would go on "
                "from it.",
                self.path,
            )

    def _take_folder(self) -> None:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise InputError(
                f"ckpt_dir is {folder}, in which another training is running; allowed is a folder "
                "for each."
            ) from error
        except OSError as error:
            raise InputError(f"ckpt_dir is {folder}, which cannot be used ({error}).") from error
        for left in folder.glob(".partial-*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)

    # Random numbers and batches

    def _start_epoch(self, engine: Engine) -> None:
        self._batches.round = 0
        if self._first:  # ignite begins the data itself
            self._first = False
        else:
            engine.set_data(self._batches)

    # Saving

    def _end_epoch(self, engine: Engine) -> None:
        if engine.state.epoch == engine.state.max_epochs != self.evaluator.state.epoch:
            self.evaluator.run(engine.state.epoch)  # whatever the interval: these may be the best
        self._save(engine, engine.state.epoch)
        if self._agreed_to_stop(engine) and engine.state.epoch < engine.state.max_epochs:
            self._stop(f"after epoch {engine.state.epoch}")

    def _end(self, engine: Engine) -> None:
        if self.best.score is None and rank() == 0:
            self.best.save()
        self._release()

    def _save(self, engine: Engine, epoch: int, validated: bool = True) -> None:
        everybodys: list[Any] = [generators()]
        if ranks() > 1:
            everybodys = [None] * ranks()
            dist.all_gather_object(everybodys, generators())
        if rank() > 0:
            return
        scaler = getattr(engine, "scaler", None)
        state = {
            "model": undistributed(self.network).state_dict(),
            "settings": self.best.settings,
            "recipe": self._recipe,
            "cases": self._cases,
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "max_epochs": engine.state.max_epochs,
            "validated": validated,
            "metrics": scalars(self.evaluator.state.metrics),
            "best": self.best.state_dict(),
            "generators": everybodys,
        }
        try:
            save_checkpoint(state, self.path)
        except InputError as error:
            raise InputError(f"{error} {self._what_is_kept()}") from error

    def _what_is_kept(self) -> str:
        if not self.path.is_file():
            return "No epoch of this training is kept."
        state = load_checkpoint(self.path)
        return f"{self.path} keeps epoch {state['epoch']}: --resume True goes on from there."

    # The end that was asked for

    def _ask_to_stop(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker: it ends with its process, or if asked again
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return
        self._asked_to_stop = True

    def _stop_if_asked(self, engine: Engine) -> None:
        trainer, state = self._engine, self._engine.state
        done = state.iteration - (state.epoch - 1) * state.epoch_length
        if engine is trainer and done < state.epoch_length and self._agreed_to_stop(engine):
            self._save(trainer, state.epoch - 1)
            self._stop(f"after {done} of {state.epoch_length} iterations of epoch {state.epoch}")
        # Several processes validate for different times: they end after it.
        if engine is not trainer and ranks() == 1 and self._asked_to_stop:
            self._save(trainer, state.epoch, validated=False)
            self._stop(f"in the validation of epoch {state.epoch}")

    def _stop(self, where: str) -> NoReturn:
        raise Stopped(f"SIGTERM ended the training {where}: --resume True goes on from there.")

    def _agreed_to_stop(self, engine: Engine) -> bool:
        """Whether any process was asked to, which then all know at the same iteration."""
        if ranks() == 1:
            return self._asked_to_stop
        asked = torch.tensor(float(self._asked_to_stop), device=engine.state.device)
        dist.all_reduce(asked)
        return asked.item() > 0

    def _explain(self, engine: Engine, error: BaseException) -> None:
        self._release()
        if self._asked_to_stop and not isinstance(error, Stopped):  # a worker was asked, too
            raise Stopped(f"SIGTERM ended the training. {self._what_is_kept()}") from error
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise InputError(
                f"A process that loads cases was killed, which is often for want of memory "
                f"({error}); allowed are fewer, by --num_workers. {self._what_is_kept()}"
            ) from error
        raise error

    def _release(self) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGTERM, self._previous)
            del self._previous
        self._lock.release()

    # Going on

    def _load(self, engine: Engine) -> None:
        if not self.path.is_file():
            raise InputError(
                f"resume is True, but there is no {self.path} to go on from; allowed is the "
                "ckpt_dir of a training that finished an epoch, or --resume False."
            )
        state = load_checkpoint(self.path)
        self._check(engine, state)
        undistributed(self.network).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._load_schedule(state, engine.state.max_epochs)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["best"])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self._batches.go_on(state["generators"][rank()])
        if state["epoch"] >= engine.state.max_epochs:
            _logger.warning(
                "The training in %s had ended after %d epochs: nothing is left to do; --max_epochs "
                "makes it longer.",
                self.path,
                state["epoch"],
            )
        else:
            _logger.info("Going on from %s, after epoch %d.", self.path, state["epoch"])
        self.evaluator.state.metrics.update(state["metrics"])  # schedules may look at them
        if not state["validated"]:
            self.evaluator.run(state["epoch"])

    def _load_schedule(self, state: Mapping[str, Any], max_epochs: int) -> None:
        """That of a longer or shorter training goes to its own end from where it is."""
        ends = {
            name: value
            for name, value in self.lr_scheduler.state_dict().items()
            if name in ("total_iters", "T_max")
        }
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        if max_epochs == state["max_epochs"] or not ends:
            return
        self.lr_scheduler.load_state_dict(state["lr_scheduler"] | ends)
        rates = self.lr_scheduler._get_closed_form_lr()  # type: ignore[attr-defined]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        _logger.info(
            "max_epochs is %d, and was %d: the learning rate goes on as if it had always been so.",
            max_epochs,
            state["max_epochs"],
        )

    def _check(self, engine: Engine, state: Mapping[str, Any]) -> None:
        """That it is the same training.

        Raises:
            InputError: a setting differs, or the cases, or the number of processes.
        """
        both = self._recipe.keys() & state["recipe"].keys()
        differ = [
            f"{name} is {self._recipe[name]}, and was {state['recipe'][name]}"
            for name in self._recipe  # in the config's order
            if name in both and self._recipe[name] != state["recipe"][name]
        ]
        if self._cases != state["cases"]:
            differ.append("the training cases are others")
        elif engine.state.epoch_length != state["epoch_length"]:
            differ.append(
                f"an epoch has {engine.state.epoch_length} iterations, and had "
                f"{state['epoch_length']}"
            )
        if ranks() != len(state["generators"]):
            differ.append(f"{ranks()} processes train, and {len(state['generators'])} did")
        if differ:
            raise InputError(
                f"The training in {self.path} cannot be continued with other settings: "
                f"{listed(differ, 5)}; allowed are its own, or another --ckpt_dir."
            )


def _recipe(parser: ConfigParser) -> dict[str, str]:
    """What a training learns by: ids of the config that are no dicts, as text."""
    found: dict[str, str] = {}

    def walk(value: Any, id_: str) -> None:
        if id_ in _MAY_DIFFER:
            return
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{id_}#{key}" if id_ else str(key))
        else:
            found[id_] = json.dumps(value, default=repr)

    walk(parser.config, "")
    return found


def _names(dataset: Any) -> str:
    """A digest of what the images are called, and their folders, on whatever disk they are."""
    data = getattr(dataset, "data", None)
    if not isinstance(data, Sequence):
        return ""
    names = [
        ["/".join(Path(str(file)).parts[-2:]) for file in _files(case.get("image"))]
        for case in data
        if isinstance(case, Mapping)
    ]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _files(image: Any) -> Sequence[Any]:
    return image if isinstance(image, (list, tuple)) else [image]
