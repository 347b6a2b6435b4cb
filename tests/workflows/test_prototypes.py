"""What a training tells of its prototypes: counted by hand."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.engines import IterationEvents
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from common.blocks import Codebook
from common.evaluation import codebook, prototypes_figure
from common.workflows import CodebookStatistics


class Output(NamedTuple):
    logits: Tensor
    codes: Tensor


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codebook = Codebook(4, 3)


def train(network: nn.Module, folder: Path, epochs: list[list[object]], interval: int) -> None:
    """An engine whose network gives these outputs, epoch by epoch."""
    outputs = iter([output for epoch in epochs for output in epoch])

    def step(engine: Engine, batch: object) -> None:
        engine.state.output = {"pred": next(outputs)}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    CodebookStatistics(network, str(folder), interval).attach(engine)
    engine.run([0] * len(epochs[0]), max_epochs=len(epochs))


def told(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_each_epoch_has_its_own_statistics(tmp_path: Path):
    def codes(*values: int) -> Output:
        return Output(torch.zeros(1), torch.tensor(values).view(1, -1, 1))

    epochs: list[list[object]] = [
        [codes(0, 0), codes(1, 1)],  # two prototypes, as often
        [codes(2, 2), codes(2, 2)],
        [codes(0, 1), codes(2, 3)],
    ]
    train(Network(), tmp_path, epochs, interval=2)
    found = told(tmp_path)
    perplexity = [(x.step, x.value) for x in found.Scalars("codebook_perplexity")]
    assert perplexity == [(1, pytest.approx(2)), (2, pytest.approx(1)), (3, pytest.approx(4))]
    assert [x.value for x in found.Scalars("codebook_dead")] == [2, 3, 0]
    assert [x.step for x in found.Images("codebook_prototypes")] == [2, 3]


def test_unequal_use_by_hand(tmp_path: Path):
    output = Output(torch.zeros(1), torch.tensor([0, 0, 0, 1]))
    train(Network(), tmp_path, [[output]], interval=1)
    (perplexity,) = told(tmp_path).Scalars("codebook_perplexity")
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert perplexity.value == pytest.approx(math.exp(entropy))


def test_other_networks_have_nothing_to_tell(tmp_path: Path):
    train(nn.Linear(1, 1), tmp_path, [[torch.zeros(1), torch.zeros(1)]], interval=1)
    assert not list(tmp_path.iterdir())


def test_what_umap_needs_is_said_once(monkeypatch, caplog: pytest.LogCaptureFixture):
    codebook._say_without_umap.cache_clear()
    monkeypatch.setattr(codebook, "find_spec", lambda name: None)
    prototypes = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            prototypes_figure(prototypes, np.arange(20))
        prototypes_figure(prototypes[:4], np.arange(1, 5))  # too few to unfold
    assert [record.getMessage() for record in caplog.records] == [
        "umap-learn is not installed: prototypes are drawn by their principal components; UMAP "
        'needs pip install ".[umap]" in this project\'s folder.'
    ]
