"""The order of cases in an epoch that is longer than the data."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, DistributedSampler

from common.workflows.batches import Batches


@pytest.mark.parametrize("ranks", [1, 2])
def test_each_round_of_an_epoch_has_an_order_of_its_own(ranks: int):
    dataset = Dataset(list(range(64)))
    seen = []
    for rank in range(ranks):
        sampler = DistributedSampler(dataset, num_replicas=ranks, rank=rank, shuffle=True)
        split = {"sampler": sampler} if ranks > 1 else {"shuffle": True}
        engine = Engine(lambda engine, batch: None)
        engine.data_loader = DataLoader(dataset, batch_size=4, **split)
        engine.state.epoch = 1
        batches = Batches(engine, seed=0)
        seen.append([torch.cat(list(batches)).tolist() for _ in range(3)])
        assert seen[-1][0] != seen[-1][1] != seen[-1][2]
    for round_ in zip(*seen, strict=True):
        assert sorted(case for cases in round_ for case in cases) == list(range(64))
