"""Losses that are no numbers, in small trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed import end_process_group
from common.errors import InputError
from common.workflows import CheckFinite, finite

BAD = 2  # the iteration, of three


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))


def train(
    folder: Path,
    module: nn.Module,
    loss: Callable[[Any, Tensor], Tensor] = lambda pred, label: pred.mean() + label.mean(),
    check: bool = True,
    **bad: float,
) -> SupervisedTrainer:
    """One epoch of three batches; `bad` is a value of the second's image or label."""
    batches = [{"image": torch.ones(2, 4), "label": torch.ones(2, 3)} for _ in range(3)]
    for key, value in bad.items():
        batches[BAD - 1][key][0, 0] = value
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=batches,
        network=module,
        optimizer=torch.optim.SGD(module.parameters(), 0.1),
        loss_function=loss,
        train_handlers=[CheckFinite(check, str(folder), module)],
    )
    trainer.run()
    return trainer


def read(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def of_scales(pred: Tensor, label: Tensor) -> Tensor:
    return pred[1][0].mean()


class Scales(nn.Module):
    """Outputs within others, of which the last may be infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return y, [y / (x[0, 0] - 3)]


@pytest.mark.parametrize(
    ("module", "options", "said"),
    [
        (network, {"image": math.nan}, "The images and the network's output of this batch hold"),
        (network, {"image": math.inf}, "The images and the network's output of this batch hold"),
        (network, {"label": math.nan}, "images and of the network's output are finite"),
        (Scales, {"image": 3, "loss": of_scales}, "The network's output of this batch hold"),
    ],
)
def test_what_is_not_finite_is_said(
    module: Callable[[], nn.Module], options: dict[str, Any], said: str, tmp_path: Path
):
    with pytest.raises(InputError, match=rf"The loss is -?(nan|inf) at iteration {BAD}.*{said}"):
        train(tmp_path, module(), **options)
    assert read(tmp_path / "not_finite.pt")["image"].shape == (2, 4)


def test_the_iteration_can_be_done_again(tmp_path: Path):
    """With its dropout: the random states are those before the network ran."""
    outputs: list[Tensor] = []

    def loss(pred: Tensor, label: Tensor) -> Tensor:
        outputs.append(pred.detach())
        return pred.mean() + label.mean()

    with pytest.raises(InputError):
        train(tmp_path, network(), loss, label=math.nan)
    dump = read(tmp_path / "not_finite.pt")
    again = network()
    again.load_state_dict(dump["model"])
    torch.set_rng_state(dump["generators"]["torch"])
    assert (outputs[-1] == 0).any(), "something is dropped"
    assert torch.equal(again(dump["image"]), outputs[-1])


def test_a_dump_that_cannot_be_written(tmp_path: Path):
    """As on a full disk: that the loss is no number is said all the same, and why it is nowhere."""
    with pytest.raises(InputError, match=r"The loss is nan.*gone/not_finite\.pt cannot be written"):
        train(tmp_path / "gone", network(), label=math.nan)


@pytest.fixture
def distributed(tmp_path: Path) -> Iterator[DistributedDataParallel]:
    dist.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    module = DistributedDataParallel(network())
    yield module
    end_process_group(module)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_has_a_dump(
    rank: int,
    distributed: DistributedDataParallel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Of the network itself, whose weights load into one of a single process."""
    monkeypatch.setattr(finite, "rank", lambda: rank)
    with pytest.raises(InputError) as raised:
        train(tmp_path, distributed, label=math.nan)
    file = tmp_path / ("not_finite_rank1.pt" if rank else "not_finite.pt")
    assert f"The batch and the weights are in {file}." in str(raised.value)
    assert [path.name for path in tmp_path.glob("*.pt")] == [file.name]
    network().load_state_dict(read(file)["model"])


def test_switch(tmp_path: Path):
    trainer = train(tmp_path, network(), check=False, label=math.nan)
    assert trainer.state.iteration == 3
    assert not list(tmp_path.iterdir())
    for check in (1, "no", None):
        with pytest.raises(InputError, match=r"check_finite is .*; allowed are True and False"):
            CheckFinite(check, str(tmp_path), network())
