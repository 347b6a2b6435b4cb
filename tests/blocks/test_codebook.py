from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from common.blocks import Codebook
from common.distributed import end_process_group


def brute_force(sites: Tensor, prototypes: Tensor) -> Tensor:
    differences = sites[:, None].double() - prototypes.double()
    return differences.square().sum(-1).argmin(-1)


@pytest.mark.parametrize("offset", [0.0, 1e4])  # at 1e4, |e|^2 - 2 z.e cancels in any precision
@pytest.mark.parametrize("num_prototypes", [8, 64, 512])
def test_nearest_equals_brute_force(num_prototypes: int, offset: float):
    torch.manual_seed(0)
    codebook = Codebook(num_prototypes, 64)
    with torch.no_grad():
        codebook.prototypes.normal_().add_(offset)
    sites = torch.randn(300, 64) + offset
    expected = brute_force(sites, codebook.prototypes.detach())
    assert torch.equal(codebook.nearest(sites), expected)
    assert len(expected.unique()) > 5


def test_first_of_equal_prototypes():
    codebook = Codebook(3, 2)
    with torch.no_grad():
        codebook.prototypes.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [1.0, 0.0]]))
    assert codebook.nearest(torch.zeros(2)) == 1


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 4)])
def test_sites_get_their_prototype_itself(size: tuple[int, ...]):
    codebook = Codebook(16, 8)
    z = torch.randn(2, 8, *size)
    quantised, loss, codes = codebook(z)
    assert quantised.shape == z.shape
    assert loss.shape == (2,)
    assert codes.shape == (2, *size)
    assert torch.equal(quantised, codebook.prototypes[codes].movedim(-1, 1))


def test_gradient_passes_straight_through():
    codebook = Codebook(16, 8)
    z = torch.randn(2, 8, 3, 4, requires_grad=True)
    weight = torch.randn(2, 8, 3, 4)
    quantised, _, _ = codebook(z)
    (quantised * weight).sum().backward()
    assert torch.equal(z.grad, weight)
    assert codebook.prototypes.grad is None


@pytest.mark.parametrize("beta", [0.0, 0.25, 2.0])
def test_each_term_has_its_own_gradient(beta: float):
    torch.manual_seed(0)
    codebook = Codebook(5, 8, beta=beta)
    z = torch.randn(2, 8, 3, 4, requires_grad=True)
    _, loss, codes = codebook(z)
    e = codebook.prototypes[codes].movedim(-1, 1)
    difference = (z - e).detach()
    torch.testing.assert_close(loss, (1 + beta) * difference.square().flatten(1).mean(1))

    loss.sum().backward()
    step = 2 * difference / difference[0].numel()
    torch.testing.assert_close(z.grad, beta * step)  # the commitment alone
    expected = torch.zeros(5, 8)
    expected.index_add_(0, codes.flatten(), -step.movedim(1, -1).flatten(0, -2))
    torch.testing.assert_close(codebook.prototypes.grad, expected)  # without beta


def test_training_moves_prototypes_to_the_clusters():
    torch.manual_seed(0)
    centres = torch.randn(4, 8) * 3
    codebook = Codebook(4, 8, init="data")
    optimizer = torch.optim.Adam(codebook.parameters(), lr=0.05)
    for _ in range(150):
        z = centres.repeat(16, 1) + 0.1 * torch.randn(64, 8)
        _, loss, _ = codebook(z.T[None])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    used = brute_force(centres, codebook.prototypes.detach())
    assert (codebook.prototypes[used] - centres).norm(dim=1).min() < 0.1


def test_usage():
    usage = Codebook(6, 2).usage(torch.tensor([[0, 0, 1, 1], [3, 3, 5, 5]]))
    assert usage.histogram.tolist() == [2, 2, 0, 2, 0, 2]
    assert usage.perplexity == pytest.approx(4)
    assert usage.dead == [2, 4]
    assert Codebook(6, 2).usage(torch.zeros(7, dtype=torch.long)).perplexity == pytest.approx(1)


def test_first_training_batch_gives_the_prototypes_once():
    codebook = Codebook(4, 3, init="data")
    z = torch.randn(2, 3, 5) + 9
    codebook.eval()
    codebook(z)
    assert codebook.prototypes.abs().max() < 1  # evaluation changes nothing

    codebook.train()
    codebook(z)
    prototypes = codebook.prototypes.detach().clone()
    sites = z.movedim(1, -1).flatten(0, 1)
    assert torch.equal(sites[brute_force(prototypes, sites)], prototypes)
    assert len(prototypes.unique(dim=0)) == 4

    resumed = Codebook(4, 3, init="data")
    resumed.load_state_dict(codebook.state_dict())
    for book in (codebook, resumed):
        book(z - 20)
        assert torch.equal(book.prototypes, prototypes)


def test_fewer_sites_than_prototypes():
    codebook = Codebook(8, 3, init="data")
    uniform = codebook.prototypes.detach().clone()
    codebook(torch.full((1, 3, 2), 7.0))
    assert torch.equal(codebook.prototypes[:2], torch.full((2, 3), 7.0))
    assert torch.equal(codebook.prototypes[2:], uniform[2:])


@pytest.mark.parametrize("restart_after", [None, 3])
def test_unused_prototype_restarts_only_if_asked(restart_after: int | None):
    codebook = Codebook(2, 3, restart_after=restart_after)
    with torch.no_grad():
        codebook.prototypes[1] = 100
    moved = []
    for _ in range(5):
        codebook(torch.rand(1, 3, 6))
        moved.append(bool(codebook.prototypes[1].max() < 1))
    assert moved == ([False] * 5 if restart_after is None else [False, False, False, True, True])
    assert codebook.state_dict().keys() == {"prototypes", "initialised"}


def trained(seed: int) -> Tensor:
    torch.manual_seed(seed)
    codebook = Codebook(16, 4, init="data", restart_after=1)
    optimizer = torch.optim.Adam(codebook.parameters())
    for _ in range(5):
        _, loss, _ = codebook(torch.randn(2, 4, 3, 3))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    return codebook.prototypes.detach()


def test_same_seed_same_training():
    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def train_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2)
    torch.manual_seed(rank)
    network = DistributedDataParallel(Codebook(4, 3, init="data", restart_after=1))
    torch.save(prototypes_in_training(network, rank), f"{folder}/{rank}.pt")
    end_process_group(network)


def prototypes_in_training(network: DistributedDataParallel, rank: int) -> list[Tensor]:
    codebook = network.module
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def step(z: Tensor) -> None:
        _, loss, _ = network(z)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()

    record = [codebook.prototypes.detach().clone()]
    step(torch.randn(1, 3, 50) + 5 * rank)
    record.append(codebook.prototypes.detach().clone())
    # Each rank serves its own two prototypes; none is idle on all ranks.
    with torch.no_grad():
        codebook.prototypes.copy_(torch.tensor([0.0, 1.0, 10.0, 11.0])[:, None].expand(4, 3))
    codebook.idle.zero_()
    z = torch.tensor([0.0, 1.0]).expand(1, 3, 2) + 10 * rank
    for _ in range(2):
        step(z)
    record.append(codebook.prototypes.detach().clone())
    # Now the upper two serve no rank, and move to sites of rank 0.
    for shift in (0.0, 0.25):
        step(torch.tensor([0.0, 1.0]).expand(1, 3, 2) + shift + 0.25 * rank)
    record.append(codebook.prototypes.detach().clone())
    return record


def test_ranks_agree(tmp_path: Path):
    mp.spawn(train_rank, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    uniform, drawn, kept, restarted = first
    assert not torch.equal(drawn, uniform)
    assert torch.equal(kept, torch.tensor([0.0, 1.0, 10.0, 11.0])[:, None].expand(4, 3))
    assert restarted.max() < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prototypes": 0}, "num_prototypes is 0; allowed are whole numbers from 1"),
        ({"dim": 0}, "dim is 0"),
        ({"beta": -1}, "beta is -1; allowed are numbers from 0"),
        ({"init": "kmeans"}, "init is 'kmeans'; allowed are 'uniform' and 'data'"),
        ({"restart_after": 0}, "restart_after is 0; allowed are None and"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        Codebook(**({"num_prototypes": 4, "dim": 4} | change))
