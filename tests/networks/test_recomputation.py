"""Levels that are computed again: the same training, bit for bit, in less memory."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from monai.networks.layers import DropPath
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from common.distributed import end_process_group, synchronized
from common.errors import InputError
from common.networks import (
    LCMambaNet,
    LiverTumourCascade,
    SwinUMamba,
    VMUNet,
    lcmambanet,
    recomputation,
    recompute_levels,
)
from common.ops import WholeConvolutions

from ..test_bundle_runs import BUNDLE
from ..test_comparison_networks import networks, parser, small
from .test_dropout import (
    codebook,
    elan_res,
    lc_mamba,
    light_m,
    mamba_clinix,
    seg_mamba,
    swin_u_mamba,
    u_mamba,
    vm_unet,
)

Build = Callable[[], nn.Module]


def cascade() -> nn.Module:
    return LiverTumourCascade(elan_res(), elan_res(), stage="tumor")


OWN: list[Callable[..., nn.Module]] = [
    *(light_m, mamba_clinix, codebook, elan_res, lc_mamba),
    *(u_mamba, seg_mamba, swin_u_mamba, vm_unet),
    cascade,
]


@pytest.fixture(params=OWN)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A network with what is drawn anew at every pass, in its levels too."""
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1)})

    def seeded() -> nn.Module:
        torch.manual_seed(0)
        network: nn.Module = request.param()
        for module in network.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.5
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.5
        return network.train()

    return seeded


def image(network: nn.Module) -> Tensor:
    dims = 2 if isinstance(network, (LCMambaNet, SwinUMamba, VMUNet)) else 3
    return torch.rand(2, 1, *[32] * dims, generator=torch.Generator().manual_seed(0))


def tensors(output: Any) -> Iterator[Tensor]:
    for x in (output,) if isinstance(output, Tensor) else output:
        if x.requires_grad:
            yield x


def step(
    network: nn.Module, x: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], dict[str, Tensor | None], dict[str, Tensor]]:
    """Outputs, gradients and buffers of a step of a training."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), WholeConvolutions():
        outputs = list(tensors(network(x)))
    torch.stack([y.float().square().mean() for y in outputs]).sum().backward()
    drawn = torch.rand(1)  # what comes next draws what it would have drawn
    gradients = {name: p.grad for name, p in network.named_parameters()}
    return [*outputs, drawn], gradients, dict(network.named_buffers())


def assert_same(found: nn.Module, expected: nn.Module, x: Tensor, **how: Any) -> None:
    outputs, *others = step(found, x, **how)
    wanted, *others_wanted = step(expected, x, **how)
    assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))
    for those, these in zip(others, others_wanted, strict=True):
        assert those.keys() == these.keys()
        for name, value in these.items():
            other = those[name]
            assert (value is None) == (other is None), name
            assert value is None or torch.equal(other, value), name


def kept(network: nn.Module, x: Tensor) -> int:
    """Bytes that wait for the backward pass, but for the weights."""
    storages: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def pack(x: Tensor) -> Tensor:
        if (storage := x.untyped_storage()).data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = network(x)
    assert output is not None
    return sum(storages.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_outputs_gradients_and_statistics(build: Build, dtype: torch.dtype):
    found, expected = build(), build()
    recompute_levels(found, True)
    assert_same(found, expected, image(found), dtype=dtype)


def test_less_is_kept(build: Build):
    network = build()
    x = image(network)
    before = kept(copy.deepcopy(network), x)
    recompute_levels(network, True)
    assert kept(network, x) < before / 2


@pytest.mark.parametrize("name", networks(BUNDLE))
def test_networks_to_compare_with(name: str):
    torch.manual_seed(0)
    size = [64, 32, 32] if name == "swin_unetr" else [32, 32, 16]
    options = small(BUNDLE, name) | {"patch_size": size}
    expected = parser(BUNDLE, name, options).get_parsed_content("network").train()
    found = copy.deepcopy(expected)
    x = torch.rand(2, 1, *size)
    before = kept(copy.deepcopy(expected), x)
    recompute_levels(found, True)
    assert kept(copy.deepcopy(found), x) < before / 1.5
    assert_same(found, expected, x)


def test_evaluation_and_state_dict_stay(build: Build, monkeypatch: pytest.MonkeyPatch):
    found, expected = build(), build()
    recompute_levels(found, True)
    monkeypatch.setattr(recomputation, "checkpoint", None)
    assert found.state_dict().keys() == expected.state_dict().keys()
    x = image(found)
    assert torch.equal(found.eval()(x), expected.eval()(x))


def test_it_is_exported_as_it_was():
    network, x = BasicUNet(2, 1, 2, features=[4] * 6).eval(), torch.rand(1, 1, 32, 32)
    recompute_levels(network, True)
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x))


def test_without_gradients_in_training_mode(build: Build):
    """Monte Carlo dropout."""
    found, expected = build(), build()
    recompute_levels(found, True)
    x = image(found)
    samples = []
    for network in (found, expected):
        torch.manual_seed(1)
        with torch.no_grad():
            samples.append(network(x))
    assert torch.equal(*samples)


def test_backward_twice():
    network = light_m()
    recompute_levels(network, True)
    loss = network(torch.rand(1, 1, 32, 32, 32)).square().mean()
    first, second = (
        torch.autograd.grad(loss, list(network.parameters()), retain_graph=True) for _ in range(2)
    )
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_in_a_process_group():
    """Whose batch norms sum over the ranks; here there is one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    expected = synchronized(elan_res()).train()
    found = copy.deepcopy(expected)
    recompute_levels(found, True)
    networks = [DistributedDataParallel(network) for network in (found, expected)]
    try:
        assert_same(networks[0], networks[1], torch.rand(2, 1, 32, 32, 32))
    finally:
        del networks[1].reducer, networks[1].logger, networks[1].process_group
        end_process_group(networks[0])


def test_off_and_unknown_networks():
    network = light_m()
    recompute_levels(network, False)
    assert not any(isinstance(m, recomputation._Recomputed) for m in network.modules())
    with pytest.raises(InputError) as refused:
        recompute_levels(nn.Conv3d(1, 2, 3), True)
    assert str(refused.value).startswith(
        "checkpointing is True, and the levels of Conv3d are not known; allowed is False, or True "
        "with AttentionUnet, "
    )
