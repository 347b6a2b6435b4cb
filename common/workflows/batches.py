"""The batches of a training, whose random numbers depend on the seed, the epoch and the process.

So an epoch that is begun anew after a crash is the epoch that was lost, and what is done in the
meantime, such as a validation, changes none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.data import DataLoader, set_rnd
from torch.utils.data.distributed import DistributedSampler

from ..distributed import rank


class Batches:
    """A trainer's batches, from where its iteration is, with the random numbers of its epoch."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._saved: Mapping[str, Any] | None = None
        self.round = 0  # of this epoch, which may be longer than the data

    def go_on(self, generators: Mapping[str, Any]) -> None:
        self._saved = generators

    def __len__(self) -> int:
        return len(self._engine.data_loader)

    def __iter__(self) -> Iterator[Any]:
        loader: DataLoader = self._engine.data_loader
        state = self._engine.state
        saved, self._saved = self._saved, None
        skip = state.iteration % state.epoch_length if saved is not None else 0
        while True:
            _seed(self._seed, state.epoch, self.round, loader)
            self.round += 1
            batches = iter(loader)
            if skip < len(loader):
                break
            skip -= len(loader)
        if skip:
            for _ in range(skip):
                next(batches)
            _set_generators(saved)  # type: ignore[arg-type]
        return batches


def _seed(seed: int, epoch: int, round_: int, loader: DataLoader) -> None:
    number = _number(seed, epoch, round_, rank())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    if loader.num_workers == 0:  # workers take theirs from torch's
        set_rnd(loader.dataset, number)
    if isinstance(loader.sampler, DistributedSampler):
        # It adds the epoch, which MONAI's engines tell it; the order is the same on all ranks.
        loader.sampler.seed = _number(seed, round_) if round_ else seed


def _number(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def generators() -> dict[str, Any]:
    """Plain data and tensors, which load without running code."""
    numpy: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def _set_generators(states: Mapping[str, Any]) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
