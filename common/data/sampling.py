"""Which cases each process of a training validates on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from monai.data import Dataset, DistributedSampler

from ..errors import InputError


class ValidationSampler(DistributedSampler):
    """MONAI's sampler for each case once, those of a rank next to each other in the dataset.

    So metrics that are gathered from the ranks in turn are in the dataset's order, and their means
    are those of one rank to the last digit.

    Args:
        dataset: what is validated on; or nothing, if it is empty.
        num_replicas, rank: those of the process group where not given.

    Raises:
        InputError: only some ranks would have a case; these would wait for the others' metrics.
    """

    def __init__(
        self, dataset: Dataset, num_replicas: int | None = None, rank: int | None = None
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        if 0 < len(dataset) < self.num_replicas:
            raise InputError(
                f"The validation split has {len(dataset)} of the cases that {self.num_replicas} "
                "processes validate on; allowed are none, and at least one for each process."
            )
        self.cases = np.array_split(range(len(dataset)), self.num_replicas)[self.rank].tolist()
        self.num_samples = len(self.cases)

    def __iter__(self) -> Iterator[int]:
        return iter(self.cases)
