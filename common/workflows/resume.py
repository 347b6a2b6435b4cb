"""Trainings that can be continued: what is kept of them, and how they go on.

The random numbers of an epoch depend on the seed, the epoch and the process alone: an epoch that
is begun anew after a crash is the epoch that was lost. So the state between two epochs is that of
the network, the optimiser and the schedule; within one, the generators' states are added.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
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
from monai.handlers import LrScheduleHandler
from torch import Tensor, nn

from ..checkpoints import LAST, load_checkpoint, save_checkpoint
from ..distributed import rank, ranks
from ..errors import InputError, check_switches, first_line, listed
from ..files import remove_partial
from .batches import Batches, generators
from .best import SaveBest, undistributed
from .curves import LearningCurves, scalars
from .settings import running_config

_logger = logging.getLogger(__name__)

STOPPED = 75  # the exit code of a training that SIGTERM ended: EX_TEMPFAIL, "try again"

# Ids of train.json that say where and how fast a training runs, not what it learns; and those of
# data, of which the names of the cases are compared.
_MAY_DIFFER = (
    *("imports", "bundle_root", "dataset_dir", "output_dir", "ckpt_dir", "checkpoint", "typed"),
    *("split_file", "cases", "exclude", "split", "split_seed", "fold", "num_folds"),
    *("device", "amp", "max_epochs", "val_interval", "val_cases", "sw_batch_size", "overlap"),
    *("cache", "cache_num", "num_workers", "resume", "strict", "check_finite", "pretrained"),
    "checkpointing",
    *("encoder_weights", "settings", "stated", "label_names", "network", "precision", "validate"),
    *("initialize", "run", "finalize", "_meta_"),
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

    It comes after the handlers that validate, and attaches those of the schedule and the curves
    itself: what an epoch's end brings is in the state. Where nothing was validated, the last
    weights are kept as the best ones.

    Args:
        ckpt_dir: the folder, which one training at a time may use.
        resume: go on from the state in there.
        seed: of all random numbers.
        network, optimizer: what is trained.
        schedule: the handler that steps the learning rate.
        evaluator: the validation.
        best: keeps the best weights.
        curves: whose rows are a part of the state.

    Raises:
        InputError: resume is neither True nor False, or seed no whole number; or, when the training
            starts, there is nothing to go on from, it is of another training, or another process
            trains in the folder; or later, the state cannot be written.
    """

    def __init__(
        self,
        ckpt_dir: str,
        resume: bool,
        seed: int,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: LrScheduleHandler,
        evaluator: Evaluator,
        best: SaveBest,
        curves: LearningCurves,
    ) -> None:
        check_switches(resume=resume)
        if type(seed) is not int or seed < 0:
            raise InputError(f"seed is {seed!r}; allowed are whole numbers from 0.")
        self.path = Path(ckpt_dir) / LAST
        self.resume = resume
        self.seed = seed
        self.network = network
        self.optimizer = optimizer
        self.schedule = schedule
        self.lr_scheduler = schedule.lr_scheduler
        self.evaluator = evaluator
        self.best = best
        self.curves = curves
        self._recipe = _recipe(running_config())
        self._lock = FileLock(Path(ckpt_dir) / ".training.lock", timeout=0)
        self._asked_to_stop = False
        self._first = True  # epoch of this run

    def attach(self, engine: Engine) -> None:
        self.schedule.attach(engine)
        self.curves.attach(engine)
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
        if not self.evaluator.has_event_handler(self._stop_validation_if_asked):
            self.evaluator.add_event_handler(Events.STARTED, self._stop_before_validation_if_asked)
            self.evaluator.add_event_handler(
                Events.ITERATION_COMPLETED, self._stop_validation_if_asked
            )
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
        remove_partial(folder)

    # Random numbers and batches

    def _start_epoch(self, engine: Engine) -> None:
        self._batches.round = 0
        if self._first:  # ignite begins the data itself
            self._first = False
        else:
            engine.set_data(self._batches)

    # Saving

    def _end_epoch(self, engine: Engine) -> None:
        self._save(engine, engine.state.epoch, [None] * ranks())
        if self._agreed_to_stop(engine) and engine.state.epoch < engine.state.max_epochs:
            self._stop(f"after epoch {engine.state.epoch}")

    def _end(self, engine: Engine) -> None:
        if self.best.score is None and rank() == 0:
            self.best.save()
        self._release()

    def _save(self, engine: Engine, epoch: int, everybodys: Sequence[Any], **more: Any) -> None:
        """Write the state of the first process, and the generators of all.

        Args:
            epoch: how many are finished.
            everybodys: the generators' states by process; None for those between two epochs.
            more: what differs from the present.
        """
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
            "rates": self._rates(),
            "buffers": self._other_buffers(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epoch,
            "iteration": engine.state.iteration,
            "epoch_length": engine.state.epoch_length,
            "max_epochs": engine.state.max_epochs,
            "validated": True,
            "metrics": scalars(self.evaluator.state.metrics),
            "best": self.best.state_dict(),
            "curves": self.curves.state_dict(),
            "generators": list(everybodys),
            **more,
        }
        save_checkpoint(state, self.path)

    def _rates(self) -> list[float]:
        return [group["lr"] for group in self.optimizer.param_groups]

    def _other_buffers(self) -> dict[str, Tensor]:
        """Those that no checkpoint has, such as counts that only training needs."""
        network = undistributed(self.network)
        kept = network.state_dict().keys()
        return {name: x for name, x in network.named_buffers() if name not in kept}

    def _what_is_kept(self) -> str:
        if not self.path.is_file():
            return "No epoch of this training is kept."
        try:
            epoch = _checked(load_checkpoint(self.path, mmap=True), self.path)["epoch"]
        except InputError as error:
            return str(error)
        return f"{self.path} keeps epoch {epoch}: --resume True goes on from there."

    # The end that was asked for

    def _ask_to_stop(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a worker: it ends with its process, or if asked again
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return
        self._asked_to_stop = True

    def _stop_if_asked(self, engine: Engine) -> None:
        state = engine.state
        done = state.iteration - (state.epoch - 1) * state.epoch_length
        if done == state.epoch_length:
            # A validation that is interrupted is begun anew, and what follows it: the schedule's
            # step may come before or after.
            self._before = {
                "lr_scheduler": copy.deepcopy(self.lr_scheduler.state_dict()),
                "rates": self._rates(),
            }
        elif self._agreed_to_stop(engine):
            everybodys: list[Any] = [generators()]
            if ranks() > 1:
                everybodys = [None] * ranks()
                dist.all_gather_object(everybodys, generators())
            self._save(engine, state.epoch - 1, everybodys)
            self._stop(f"after {done} of {state.epoch_length} iterations of epoch {state.epoch}")

    def _stop_before_validation_if_asked(self, evaluator: Engine) -> None:
        if self._agreed_to_stop(evaluator):
            self._stop_validation()

    def _stop_validation_if_asked(self, evaluator: Engine) -> None:
        """By each process for itself: they validate for different times."""
        if self._asked_to_stop:
            self._stop_validation()

    def _stop_validation(self) -> NoReturn:
        epoch = self._engine.state.epoch
        self._save(self._engine, epoch, [None] * ranks(), validated=False, **self._before)
        self._stop(f"in the validation of epoch {epoch}")

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
        if killed := _killed_worker(error):
            if self._asked_to_stop:  # the worker was asked, too, and ended first
                raise Stopped(f"SIGTERM ended the training. {self._what_is_kept()}") from error
            raise InputError(
                f"A process that loads cases was killed, which is often for want of memory "
                f"({killed}); allowed are fewer, by --num_workers. {self._what_is_kept()}"
            ) from error
        if isinstance(error, InputError) and not self._first:
            kept = self._what_is_kept()
            if kept not in str(error):  # ignite asks twice
                raise InputError(f"{error} {kept}") from error
        raise error

    def _release(self) -> None:
        if hasattr(self, "_previous"):
            signal.signal(signal.SIGTERM, self._previous)
            del self._previous
        self._lock.release()

    # Going on

    def _load(self, engine: Engine) -> None:
        state = self._read(engine)
        self._check(engine, state)
        network = undistributed(self.network)
        network.load_state_dict(state["model"])
        for name, x in self._other_buffers().items():
            if name in state["buffers"]:
                x.copy_(state["buffers"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.optimizer.param_groups, state["rates"], strict=True):
            group["lr"] = rate
        self._load_schedule(state, engine.state.max_epochs)
        scaler = getattr(engine, "scaler", None)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["best"])
        self.curves.load_state_dict(state["curves"])
        self.evaluator.state.metrics.update(state["metrics"])  # schedules may look at them
        epoch = engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        self._batches.go_on(state["generators"][rank()])
        if epoch < engine.state.max_epochs:
            _logger.info("Going on from %s, after epoch %d.", self.path, epoch)
        elif state["validated"]:
            _logger.warning(
                "The training in %s had ended after %d epochs: nothing is left to do; --max_epochs "
                "makes it longer.",
                self.path,
                epoch,
            )
        if not state["validated"]:
            self._before = {name: state[name] for name in ("lr_scheduler", "rates")}
            self.evaluator.run(epoch)
            self.schedule(engine)
            self.curves.end_epoch(engine)
            self._save(engine, epoch, [None] * ranks())

    def _read(self, engine: Engine) -> Mapping[str, Any]:
        """The state, which the first process reads for all: they may be on several machines."""
        box: list[Any] = [None]
        if rank() == 0:
            if not self.path.is_file():
                raise InputError(
                    f"resume is True, but there is no {self.path} to go on from; allowed is the "
                    "ckpt_dir of a training that finished an epoch, or --resume False."
                )
            box = [_checked(load_checkpoint(self.path), self.path)]
        if ranks() > 1:
            dist.broadcast_object_list(box, device=engine.state.device)
        return box[0]

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
        rates = self.lr_scheduler._get_closed_form_lr()
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
        now, then = self._recipe, state["recipe"]
        differ = [
            f"{name} is {now.get(name, 'not given')}, and was {then.get(name, 'not given')}"
            for name in {**now, **then}  # in the config's order
            # A later version may have an option more, which one that has it not leaves as it was.
            if now.get(name) != then.get(name) and ("#" in name or (name in now and name in then))
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
        if id_ in _MAY_DIFFER or id_.endswith("_requires_"):
            return
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{id_}#{key}" if id_ else str(key))
        else:
            found[id_] = json.dumps(value, default=repr)

    walk(parser.config, "")
    if "encoder_frozen_epochs" in found and parser.config.get("encoder_weights") is None:
        found["encoder_frozen_epochs"] = "0"  # where nothing is loaded, nothing waits
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


def _checked(state: Any, path: Path) -> Mapping[str, Any]:
    """The content of a file, if it is a training's state."""
    needed = {"epoch", "recipe", "optimizer", "curves", "generators"}
    if not isinstance(state, Mapping) or not needed <= state.keys():
        raise InputError(f"{path} is no state of a training; allowed is one that a training wrote.")
    return state


def _killed_worker(error: BaseException | None) -> str | None:
    """What torch says of a DataLoader's worker that was killed, where that led to an error.

    It interrupts whatever runs, so that something else may fail for it. Of a worker that raised
    something torch says otherwise: "DataLoader worker process".
    """
    while error is not None:
        if isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error):
            return first_line(error)
        error = error.__cause__ or error.__context__
    return None
