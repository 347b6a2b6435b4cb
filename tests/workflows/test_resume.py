"""A small training, interrupted at every place there is, ends as one that was not."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from common.errors import InputError, input_error_in
from common.workflows import LearningCurves, Stopped

EPOCHS, CASES, VALIDATION = 3, 5, 3


class Cases(torch.utils.data.Dataset):
    """Points of a line, moved at random for training."""

    def __init__(self, number: int, moved: bool = True) -> None:
        self.moved = moved
        self.data = [{"image": f"{i}.nii.gz"} for i in range(number)]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        x = torch.tensor([float(index), 1.0])
        x = x + torch.rand(2) if self.moved else x
        return {"image": x, "label": x.sum(0, keepdim=True) * 2}


class Network(torch.nn.Sequential):
    """With dropout, and a count that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(2, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        self.register_buffer("steps", torch.tensor(0.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        return super().forward(x) + self.steps / 10


def config(folder: Path, **overrides: Any) -> ConfigParser:
    here = __name__
    optimizer = {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.1}
    plateau = {
        "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "optimizer": "@optimizer",
        "mode": "max",
        "patience": 0,
        "factor": 0.5,
    }
    mse = {
        "_target_": "monai.handlers.MeanSquaredError",
        "output_transform": "$monai.handlers.from_engine(['pred', 'label'])",
    }
    loader = {"_target_": "monai.data.DataLoader", "batch_size": 2, "num_workers": 0}
    content: dict[str, Any] = {
        "seed": 3,
        "resume": False,
        "epoch_length": None,
        "val_interval": 1,
        "batch_size": 2,
        "network": {"_target_": f"{here}.Network"},
        "optimizer": optimizer,
        "schedule": {
            "_target_": "LrScheduleHandler",
            "lr_scheduler": plateau,
            "print_lr": False,
            "step_transform": "$lambda _: -@evaluator.state.metrics.get('error', 0.0)",
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "$torch.device('cpu')",
            "val_data_loader": loader
            | {"dataset": {"_target_": f"{here}.Cases", "number": 5, "moved": False}},
            "network": "@network",
            "key_val_metric": {"error": mse},
            "val_handlers": ["@best"],
        },
        "best": {
            "_target_": "common.workflows.SaveBest",
            "ckpt_dir": str(folder),
            "network": "@network",
            "settings": {"spacing": [1.0, 2.0]},
        },
        "curves": {
            "_target_": "common.workflows.LearningCurves",
            "output_dir": str(folder),
            "optimizer": "@optimizer",
            "evaluator": "@evaluator",
            "best": "@best",
        },
        "state": {
            "_target_": "common.workflows.TrainingState",
            "ckpt_dir": str(folder),
            **{name: f"@{name}" for name in ("resume", "seed", "network", "optimizer")},
            **{name: f"@{name}" for name in ("schedule", "evaluator", "best", "curves")},
        },
        "max_epochs": EPOCHS,
        "trainer": {
            "_target_": "SupervisedTrainer",
            "device": "$torch.device('cpu')",
            "max_epochs": "@max_epochs",
            "epoch_length": "@epoch_length",
            "train_data_loader": loader
            | {"dataset": {"_target_": f"{here}.Cases", "number": CASES}, "shuffle": True}
            | {"batch_size": "@batch_size"},
            "network": "@network",
            "optimizer": "@optimizer",
            "loss_function": {"_target_": "torch.nn.MSELoss"},
            "train_handlers": [
                {
                    "_target_": "ValidationHandler",
                    "validator": "@evaluator",
                    "interval": "@val_interval",
                },
                {"_target_": "common.workflows.ValidateLast", "evaluator": "@evaluator"},
                "@state",
            ],
        },
    }
    parser = ConfigParser(content)
    parser.update(overrides)
    return parser


def train(folder: Path, *, after: Callable[[Any], None] | None = None, **overrides: Any) -> None:
    """Build and run one, as a process of its own would; `after` sees its engines first."""
    torch.manual_seed(0)
    parser = config(folder, **overrides)
    trainer: SupervisedTrainer = parser.get_parsed_content("trainer")
    if after is not None:
        after(parser)
    trainer.run()


def state(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last_epoch.pt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "learning_curves.csv").open(newline="") as stream:
        found = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in found]


def check(folder: Path, reference: Path) -> None:
    found, expected = state(folder), state(reference)
    for part in ("model", "buffers"):
        assert found[part].keys() == expected[part].keys()
        for name, x in expected[part].items():
            assert torch.equal(found[part][name], x), name
    for part in ("epoch", "iteration", "best", "metrics", "rates", "lr_scheduler", "validated"):
        assert found[part] == expected[part], part
    best = [torch.load(x / "model.pt", weights_only=True) for x in (folder, reference)]
    assert all(torch.equal(best[0][name], x) for name, x in best[1].items())
    assert rows(folder) == rows(reference)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "epochs longer than the data": {"epoch_length": 4},
    "validated now and then": {"val_interval": 2},
}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer than such a training."""
    monkeypatch.setattr(LearningCurves, "_draw", lambda self: None)


@pytest.fixture(scope="module", params=list(OPTIONS))
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("reference")
    options = OPTIONS[request.param]
    train(folder, **options)
    return folder, options


class Interrupt:
    """A signal at so many events of an engine's kind, counted over the whole training."""

    def __init__(self, number: int, what: Callable[[], None]) -> None:
        self.left = number
        self.what = what

    def __call__(self, *_: object) -> None:
        if self.left == 0:
            self.what()
        self.left -= 1


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    """SIGKILL would end the tests as well; nothing catches this."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("what", [terminate, kill])
@pytest.mark.parametrize("engine", ["trainer", "evaluator"])
def test_at_every_iteration(
    reference: tuple[Path, dict[str, Any]], tmp_path: Path, engine: str, what: Callable
):
    """Whether it is asked to end, or ends at once."""
    from ignite.engine import Events

    expected, options = reference
    length = options.get("epoch_length", 3)
    lasting = {"trainer": EPOCHS * length, "evaluator": len(rows(expected)) * VALIDATION}[engine]
    if options.get("val_interval") == 2 and engine == "evaluator":
        lasting = 2 * VALIDATION
    for number in range(lasting):
        folder = tmp_path / str(number)

        def interrupt(parser: ConfigParser, number: int = number) -> None:
            found = parser.get_parsed_content(engine)
            found.add_event_handler(Events.ITERATION_STARTED, Interrupt(number, what))

        try:
            train(folder, after=interrupt, **options)
            ended = True
        except (Stopped, Killed):
            ended = False
        assert not ended
        train(folder, resume=(folder / "last_epoch.pt").is_file(), **options)
        check(folder, expected)


def test_an_epoch_is_not_lost_when_asked(tmp_path: Path):
    from ignite.engine import Events

    def interrupt(parser: ConfigParser) -> None:
        trainer = parser.get_parsed_content("trainer")
        trainer.add_event_handler(Events.ITERATION_STARTED, Interrupt(1, terminate))

    with pytest.raises(Stopped) as stopped:
        train(tmp_path, after=interrupt)
    assert stopped.value.code == 75
    assert str(stopped.value) == (
        "SIGTERM ended the training after 2 of 3 iterations of epoch 1: --resume True goes on "
        "from there."
    )
    assert (state(tmp_path)["epoch"], state(tmp_path)["iteration"]) == (0, 2)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def refused(folder: Path, **overrides: Any) -> str:
    with pytest.raises((RuntimeError, InputError)) as error:
        train(folder, resume=True, **overrides)
    sentence = input_error_in(error.value)
    assert sentence is not None
    return sentence


@pytest.mark.parametrize(
    ("then", "now", "expected"),
    [
        ({}, {"batch_size": 1}, "batch_size is 1, and was 2"),
        ({}, {"optimizer#weight_decay": 0.1}, "optimizer#weight_decay is 0.1, and was not given"),
        ({"optimizer#amsgrad": True}, {}, "optimizer#amsgrad is not given, and was true"),
        ({}, {"epoch_length": 2}, "an epoch has 2 iterations, and had 3"),
        ({}, {"trainer#train_data_loader#dataset#number": 7}, "the training cases are others"),
    ],
)
def test_other_settings(tmp_path: Path, then: dict, now: dict, expected: str):
    train(tmp_path, max_epochs=1, **then)
    assert expected in refused(tmp_path, **now)


def test_what_may_differ(tmp_path: Path):
    """A new option of a later version, and what it requires; and a longer training."""
    requirement = {"_target_": "common.errors.explain_input_errors"}
    train(tmp_path, max_epochs=1, **{"network#_requires_": requirement})
    later = {"_target_": "common.errors.check_switches"}
    train(tmp_path, resume=True, a_new_option=1, **{"network#_requires_": later})
    assert state(tmp_path)["epoch"] == EPOCHS


def test_what_is_no_state(tmp_path: Path):
    torch.save({"model": {}}, tmp_path / "last_epoch.pt")
    assert refused(tmp_path) == (
        f"{tmp_path}/last_epoch.pt is no state of a training; allowed is one that a training wrote."
    )


@pytest.mark.parametrize(("name", "value"), [("resume", "no"), ("seed", None), ("seed", -1)])
def test_arguments(tmp_path: Path, name: str, value: Any):
    with pytest.raises((RuntimeError, InputError)) as error:
        train(tmp_path, **{name: value})
    assert f"{name} is {value!r}; allowed are" in (input_error_in(error.value) or "")


def test_other_errors_stay_what_they_are(tmp_path: Path):
    """Also after a SIGTERM: who starts it again at exit code 75 would do so for ever."""
    from ignite.engine import Events

    def fail() -> None:
        terminate()
        raise InputError("The disk is full.")

    def interrupt(parser: ConfigParser) -> None:
        evaluator: SupervisedEvaluator = parser.get_parsed_content("evaluator")
        evaluator.add_event_handler(Events.ITERATION_STARTED, Interrupt(1, fail))

    with pytest.raises(InputError) as error:
        train(tmp_path, after=interrupt)
    assert str(error.value) == "The disk is full. No epoch of this training is kept."


def test_curves_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from ignite.engine import Events

    (tmp_path / "curves").mkdir()

    def remove(*_: object) -> None:
        for file in (tmp_path / "curves").iterdir():
            file.unlink()
        (tmp_path / "curves").rmdir()

    def interrupt(parser: ConfigParser) -> None:
        trainer = parser.get_parsed_content("trainer")
        trainer.add_event_handler(Events.EPOCH_COMPLETED(once=2), remove)

    train(tmp_path, after=interrupt, **{"curves#output_dir": str(tmp_path / "curves")})
    assert "cannot be written" in caplog.text
    assert state(tmp_path)["epoch"] == EPOCHS
