import math

import pytest
import torch
from monai.losses import DeepSupervisionLoss
from torch import nn

from common.blocks import Mamba
from common.checkpoints import convert_checkpoint
from common.losses import DiceCERegionTverskyLoss, deep_supervision_weights
from common.networks import MambaClinix
from common.networks.mambaclinix import HGCN, DropPath, MambaLayer, ResidualBlock

from ..conftest import GoldenCase

SMALL = {
    "in_channels": 1,
    "out_channels": 3,
    "features": (8, 16, 16),
    "strides": ((1, 1, 1), (2, 2, 2), (1, 2, 2)),
    "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3)),
}
BRATS_LIKE = {
    "in_channels": 4,
    "out_channels": 4,
    "features": (8, 16, 16, 24, 24),
    "strides": ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernel_sizes": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_golden():
    case = GoldenCase("mambaclinix")
    network = MambaClinix(**case.arguments)
    assert count(network) == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "mambaclinix"), strict=True)
    network.double().eval()
    with torch.no_grad():
        logits = network.multiscale_logits(case.vectors["x"])
        assert torch.equal(network(case.vectors["x"]), logits[0])
    assert len(logits) == 5
    for i, y in enumerate(logits):
        assert (y - case.vectors[f"y{i}"]).abs().max() <= case.tolerance


def test_parameters_of_the_papers_network():
    with torch.device("meta"):
        assert count(MambaClinix(1, 3)) == 48_874_994


@pytest.mark.parametrize(
    "size", [(2, 4, 5), (3, 4, 4), (8, 16, 16), (9, 24, 11)], ids=lambda size: str(size)
)
def test_any_size_from_the_strides_product(size: tuple[int, ...]):
    network = MambaClinix(**SMALL)
    fine, coarse = network(torch.randn(2, 1, *size))
    assert fine.shape == (2, 3, *size)
    assert coarse.shape == (2, 3, *(math.ceil(n / 2) for n in size))


@pytest.mark.parametrize("size", [(1, 4, 8), (2, 4, 3), (2, 4, 4)])
def test_volumes_too_small_are_named(size: tuple[int, ...]):
    message = rf"x has size \[{', '.join(map(str, size))}\]; allowed are sizes from \[2, 4, 4\]"
    with pytest.raises(ValueError, match=message):
        MambaClinix(**SMALL)(torch.randn(1, 1, *size))


def test_deep_supervision_in_training_only():
    x = torch.randn(1, 4, 8, 32, 32)
    network = MambaClinix(**BRATS_LIKE, drop_path=0.0)
    sizes = [(8, 32, 32), (8, 16, 16), (8, 8, 8), (4, 4, 4)]
    logits = network(x)
    assert [y.shape for y in logits] == [(1, 4, *size) for size in sizes]

    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), logits[0])
        for y, y_train in zip(network.multiscale_logits(x), logits, strict=True):
            torch.testing.assert_close(y, y_train)

    fine_only = MambaClinix(**BRATS_LIKE, drop_path=0.0, deep_supervision=False)
    fine_only.load_state_dict(network.state_dict())
    torch.testing.assert_close(fine_only(x), logits[0])


def test_gradients_reach_every_parameter_but_the_unused_scales():
    torch.manual_seed(0)
    network = MambaClinix(**SMALL)
    sum(y.square().mean() for y in network(torch.randn(2, 1, 8, 16, 16))).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.endswith("skip_scale"), name
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("layers", "kinds"),
    [
        (None, [HGCN, HGCN, MambaLayer]),
        ([None, None, None], [nn.Identity, nn.Identity, nn.Identity]),
        (["mamba", "mamba", "mamba"], [MambaLayer, MambaLayer, MambaLayer]),
        ([3, 3, 3], [HGCN, HGCN, HGCN]),
        ([2, 3, "mamba"], [HGCN, HGCN, MambaLayer]),
        ([1, None, "mamba"], [HGCN, nn.Identity, MambaLayer]),
        (["residual", "residual", "residual"], [ResidualBlock, ResidualBlock, ResidualBlock]),
    ],
    ids=str,
)
def test_layer_ablations(layers: list | None, kinds: list[type]):
    network = MambaClinix(**SMALL, layers=layers).eval()
    assert [type(stage.layer) for stage in network.encoder] == kinds
    gated = [s for s, kind in enumerate(kinds) if kind is HGCN]
    normed = [s for s, st in enumerate(network.encoder) if not isinstance(st.norm, nn.Identity)]
    assert normed == gated[-1:]
    assert network(torch.randn(1, 1, 4, 8, 8)).shape == (1, 3, 4, 8, 8)


def test_default_layers_are_the_papers():
    with torch.device("meta"):
        orders = [len(stage.layer.gated.widths) for stage in MambaClinix(1, 3).encoder[:3]]
        assert orders == [2, 3, 4]
        explicit = MambaClinix(1, 3, layers=[2, 3, 4, "mamba", "mamba", "mamba"])
        assert explicit.state_dict().keys() == MambaClinix(1, 3).state_dict().keys()
        gated = MambaClinix(1, 3, layers=[2, 3, 4, 5, 6, 6])
    assert [m.drop_prob for m in gated.modules() if isinstance(m, DropPath)] == pytest.approx(
        [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    )


def test_drop_path_drops_whole_samples_in_training():
    torch.manual_seed(0)
    drop, x = DropPath(0.75), torch.ones(2000, 2, 1, 1, 2)
    y = drop(x).flatten(1)
    assert (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0.0, 4.0}
    assert y.mean() == pytest.approx(1, abs=0.2)  # its standard deviation is 0.04
    assert torch.equal(drop.eval()(x), x)


def test_mamba_stays_in_float32_under_autocast():
    torch.manual_seed(0)
    network = MambaClinix(**SMALL, layers=["mamba", 3, "mamba"], drop_path=0.0)
    seen = []
    for module in network.modules():
        if isinstance(module, Mamba):
            module.register_forward_hook(lambda _, args, y: seen.extend((args[0].dtype, y.dtype)))
    x = 100 * torch.randn(1, 1, 8, 16, 16)
    expected = network(x)
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(x)
    assert seen == [torch.float32] * 4
    assert logits[0].dtype == torch.bfloat16  # autocast was on elsewhere
    for y, wanted in zip(logits, expected, strict=True):
        assert (y - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    sum(y.float().square().mean() for y in logits).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("autocast", [False, True])
def test_anisotropic_network_of_four_channels_trains(autocast: bool):
    torch.manual_seed(0)
    network = MambaClinix(**BRATS_LIKE)
    loss_function = DeepSupervisionLoss(
        DiceCERegionTverskyLoss(regions_per_axis=4), weights=deep_supervision_weights(4)
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    # Not 4 deep: where a map has 2 slices, torch 2.13's bfloat16 conv3d reads memory that nobody
    # wrote for its weight's gradient (oneDNN, on processors with AVX512-BF16).
    x = torch.randn(2, 4, 8, 32, 32)
    label = x.argmax(1, keepdim=True).float()
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_function(network(x), label)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.parametrize("layers", [None, [3, 3, 3], [None, None, None]], ids=str)
def test_scripted_equals_eager_at_every_size(layers: list | None):
    # In double: the two run different backends in float32.
    network = MambaClinix(**SMALL, layers=layers).double().eval()
    scripted = torch.jit.script(network)
    with torch.no_grad():
        for size in ((8, 16, 16), (5, 11, 9)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(torch.jit.Error, match=r"x has size \[2, 4, 4\]; allowed are"):
        scripted(torch.randn(1, 1, 2, 4, 4, dtype=torch.float64))


def test_traces_into_one_graph():
    network = MambaClinix(**SMALL).eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"features": (8,)}, r"features is \(8,\); allowed are"),
        ({"features": (8, 0, 16)}, r"features is \(8, 0, 16\)"),
        ({"features": (8, 16)}, "strides has 3 stages; allowed are as many as features', 2"),
        ({"kernel_sizes": ((3, 3, 3),) * 2}, "kernel_sizes has 2 stages"),
        ({"layers": [2, 3]}, "layers has 2 stages"),
        ({"strides": ((2, 2, 2),) * 3}, r"strides\[0\] is \(2, 2, 2\)"),
        ({"strides": ((1, 1, 1), (2, 2), (2, 2, 2))}, r"strides\[1\] is \(2, 2\)"),
        ({"strides": ((1, 1, 1), (2, 2, 2), (0, 2, 2))}, r"strides\[2\] is \(0, 2, 2\)"),
        ({"kernel_sizes": ((3, 3, 3), (3, 2, 3), (3, 3, 3))}, r"kernel_sizes\[1\] is \(3, 2, 3\)"),
        ({"layers": [2, "lstm", None]}, r"layers\[1\] is 'lstm'; allowed are"),
        ({"layers": [0, None, None]}, r"layers\[0\] is 0; allowed are"),
        ({"layers": [4, 3, "mamba"]}, r"features\[0\] is 8; allowed are multiples of 16"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
    ],
)
def test_bad_arguments_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MambaClinix(**(SMALL | change))
