"""Which cases each process of a training validates on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch.distributed as dist
from monai.data import Dataset, DistributedSampler

from ..errors import InputError


class ValidationSampler(DistributedSampler):
    """MONAI's sampler for all cases once, each rank's next to each other in the dataset.

    So that metrics which are gathered from the ranks in turn are in the dataset's order, and their
    means are those of one rank to the last digit.

    Args:
        dataset: what is validated on.
        num_replicas, rank: those of the process group where not given.

    Raises:
        InputError: a rank would have no case; in gathering, the others would wait for it.
    """

    def __init__(
        self, dataset: Dataset, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        ranks = dist.get_world_size() if num_replicas is None else num_replicas
        if len(dataset) < ranks:
            raise InputError(
                f"The validation split has {len(dataset)} cases, and {ranks} processes train; "
                "allowed are as many cases as processes, or more."
            )
        super().__init__(dataset, False, num_replicas, rank, shuffle=False)
        self.cases = range(len(dataset))

    def __iter__(self) -> Iterator[int]:
        return iter(np.array_split(self.cases, self.num_replicas)[self.rank].tolist())
