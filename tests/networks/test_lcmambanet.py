from __future__ import annotations

import pytest
import torch

from common.checkpoints import convert_checkpoint
from common.networks import LCMambaNet, lcmambanet
from common.networks.lcmambanet import Attention

from ..conftest import GoldenCase


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variants of one block per stage, so that tests take milliseconds."""
    monkeypatch.setattr(lcmambanet, "_DEPTHS", {"T": (1, 1, 1, 1), "S": (1, 1, 1, 1)})


@pytest.mark.parametrize(
    ("variant", "parameters", "backend"),
    [("T", 30_133_828, "auto"), ("T", 30_133_828, "torch"), ("S", 59_861_668, "auto")],
)
def test_golden(variant: str, parameters: int, backend: str):
    case = GoldenCase(f"rma_mamba_{variant.lower()}")
    network = LCMambaNet(variant, in_channels=3, out_channels=1, backend=backend).eval()
    assert sum(p.numel() for p in network.parameters()) == parameters == case.parameter_count
    network.load_state_dict(convert_checkpoint(case.state_dict, "rma_mamba"))
    x = case.vectors["x"]
    with torch.no_grad():
        outputs = [network(x), *network.encoder(x)]
    for i, y in enumerate(outputs):
        torch.testing.assert_close(y, case.vectors[f"y{i}"], rtol=0, atol=case.tolerance)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize(("in_channels", "out_channels"), [(3, 2), (1, 3)])
def test_trains_with_other_channels(in_channels: int, out_channels: int):
    torch.manual_seed(0)
    network = LCMambaNet("T", in_channels, out_channels)
    x = torch.rand(2, in_channels, 32, 64)
    target = (x[:, :1] > 0.5).float().expand(-1, out_channels, -1, -1)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        scales = network(x)
        assert [tuple(y.shape) for y in scales] == 4 * [(2, out_channels, 32, 64)]
        loss = sum(torch.nn.functional.binary_cross_entropy_with_logits(y, target) for y in scales)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, parameter in network.named_parameters():
        if not name.startswith("encoder.norms"):
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("size", [(250, 190), (33, 1), (64, 64)])
def test_odd_sizes_are_padded_by_the_edge_and_cropped(size: tuple[int, int]):
    network = LCMambaNet("T", 1, 2).eval()
    x = torch.rand(1, 1, *size)
    padded = torch.nn.functional.pad(x, (0, -size[1] % 32, 0, -size[0] % 32), mode="replicate")
    with torch.no_grad():
        y = network(x)
        torch.testing.assert_close(y, network(padded)[..., : size[0], : size[1]])
    assert y.shape == (1, 2, *size)


@pytest.mark.usefixtures("shallow")
def test_ablations_change_the_network():
    def parameters(**arguments) -> int:
        return sum(p.numel() for p in LCMambaNet(**arguments).parameters())

    plain, full = parameters(variant="T"), parameters(variant="T", extra_blocks=1)
    assert full == parameters(variant="S") > plain
    assert parameters(variant="S", extra_blocks=0) == plain
    reverse, without = parameters(attention="reverse"), parameters(attention=None)
    assert plain > reverse > without


@pytest.mark.usefixtures("shallow")
def test_reverse_attention_is_what_the_coarser_logits_leave_and_convolutions():
    """Table 5's RA: no VSS block, and where the foreground is sure its features do not count."""
    network = LCMambaNet("T", attention="reverse").eval()
    refine = network.refinements[0]
    kinds = [type(m).__name__ for m in refine.modules() if not list(m.children())]
    assert kinds == ["Identity", "Conv2d", "BatchNorm2d", "Identity", *kinds[1:3], "Conv2d"]
    features, logits = torch.randn(1, 32, 8, 8), torch.randn(1, 1, 8, 8)
    with torch.no_grad():
        y = refine.conv1((1 - logits.sigmoid()) * features)
        expected = refine.head(refine.conv2(y + features)) + logits
        torch.testing.assert_close(refine(features, logits), expected)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("attention", ["reverse_mamba", "reverse", None])
def test_scripted_network_equals_the_network(attention: Attention | None):
    network = LCMambaNet("S", 1, 2, attention=attention).eval().double()
    x = torch.rand(1, 1, 40, 50, dtype=torch.float64)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"variant": "B"}, "variant is 'B'; allowed are 'T' and 'S'"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"extra_blocks": -1}, "extra_blocks is -1"),
        ({"attention": True}, "attention is True; allowed are 'reverse_mamba', 'reverse' and None"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        LCMambaNet(**argument)
