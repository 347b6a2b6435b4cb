import pytest
from monai.data import DataLoader, Dataset

from common.data import ValidationSampler
from common.errors import InputError


@pytest.mark.parametrize(("cases", "ranks"), [(7, 3), (3, 2), (4, 2), (2, 2), (5, 1), (0, 2)])
def test_each_case_once_in_order(cases: int, ranks: int):
    dataset = Dataset(list(range(cases)))
    samplers = [ValidationSampler(dataset, ranks, rank) for rank in range(ranks)]
    loaders = [DataLoader(dataset, sampler=sampler) for sampler in samplers]
    assert [int(case) for loader in loaders for case in loader] == list(range(cases))
    assert sum(map(len, loaders)) == cases
    assert max(map(len, loaders)) - min(map(len, loaders)) <= 1


def test_fewer_cases_than_ranks_are_refused():
    with pytest.raises(InputError, match="split has 1 of the cases that 2 processes validate on"):
        ValidationSampler(Dataset([0]), 2, 0)
