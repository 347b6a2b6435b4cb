"""Parameters without a gradient in the first epochs, in small trainings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from common.errors import InputError
from common.optimizers import clip_gradients
from common.workflows import FrozenAtFirst


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))


def train(module: nn.Module, handlers: list[Any], epochs: int) -> None:
    """Two batches an epoch, with a decay and a clipping that would be seen."""
    batch = {"image": torch.eye(4), "label": torch.ones(4, 3)}
    optimizer = torch.optim.AdamW(module.parameters(), 0.1, weight_decay=0.5)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=[batch] * 2,
        network=module,
        optimizer=clip_gradients(optimizer, 0.01),
        loss_function=lambda pred, label: (pred - label).square().mean(),
        train_handlers=handlers,
    ).run()


def same(one: nn.Module, other: nn.Module) -> list[bool]:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return [torch.equal(x, y) for x, y in pairs]


def test_as_if_they_asked_for_no_gradient():
    """In the other parameters too: clipping does not count what is thrown away."""
    module, expected = network(), network()
    expected[0].requires_grad_(False)
    train(module, [FrozenAtFirst(module, ["0.*"], 1)], epochs=1)
    train(expected, [], epochs=1)
    assert all(same(module, expected))
    assert same(module, network()) == [True, True, False, False]


def test_only_in_the_first_epochs():
    module = network()
    train(module, [FrozenAtFirst(module, ["0.w*"], 2)], epochs=2)
    assert torch.equal(module[0].weight, network()[0].weight)
    assert not torch.equal(module[0].bias, network()[0].bias)
    module = network()
    train(module, [FrozenAtFirst(module, ["0.*"], 2)], epochs=3)
    assert not any(same(module, network()))


def test_of_no_epoch_no_name_is_looked_for():
    module, expected = network(), network()
    train(module, [FrozenAtFirst(module, ["encoder.*"], 0)], epochs=1)
    train(expected, [], epochs=1)
    assert all(same(module, expected))


@pytest.mark.parametrize("epochs", [-1, 1.5, "1", True])
def test_epochs_that_are_none(epochs: Any):
    with pytest.raises(InputError, match=r"frozen_epochs is .*; allowed are whole numbers from 0"):
        FrozenAtFirst(network(), ["0.*"], epochs)


def test_names_of_no_parameter_are_named():
    with pytest.raises(
        InputError, match=r"frozen_epochs is 1, and encoder\.\* .* this Sequential.* 0; 1; allowed"
    ):
        FrozenAtFirst(network(), ["0.*", "encoder.*"], 1)
