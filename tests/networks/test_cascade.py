from __future__ import annotations

import pytest
import torch
from torch import nn

from common.networks import ELANResMSCAUNet, LiverTumourCascade


def network() -> ELANResMSCAUNet:
    return ELANResMSCAUNet(1, 1, widths=(2, 2, 4, 4, 4))


def test_both_stages_are_two_channels_and_script():
    torch.manual_seed(0)
    cascade = LiverTumourCascade(network(), network()).eval()
    x = torch.randn(1, 1, 20, 33, 16)
    with torch.no_grad():
        logits = cascade(x)
        assert torch.equal(logits[:, :1], cascade.liver(x))
        assert torch.equal(logits[:, 1:], cascade.tumour(x))
        assert not torch.equal(logits[:, :1], logits[:, 1:])
        torch.testing.assert_close(torch.jit.script(cascade)(x), logits)
    assert {name.partition(".")[0] for name in cascade.state_dict()} == {"liver", "tumour"}


@pytest.mark.parametrize(
    ("stage", "name", "other"), [("liver", "liver", "tumour"), ("tumor", "tumour", "liver")]
)
def test_a_stage_trains_its_network_alone(stage, name: str, other: str):
    """Neither weights nor the statistics of batch norms of the other one change."""
    torch.manual_seed(0)
    cascade = LiverTumourCascade(network(), network(), stage).train()
    before = {key: x.clone() for key, x in cascade.state_dict().items()}
    optimiser = torch.optim.Adam(
        [p for p in cascade.parameters() if p.requires_grad], weight_decay=1
    )
    scales = cascade(torch.randn(1, 1, 32, 16, 16))
    assert [x.shape for x in scales] == [(1, 1, 32, 16, 16)] * 4
    sum(x.square().mean() for x in scales).backward()
    optimiser.step()
    for key, x in cascade.state_dict().items():
        assert torch.equal(x, before[key]) == key.startswith(other) or "num_batches" in key, key
    for counter in ("num_batches_trained", "encoder.0.0.entry.1.num_batches_tracked"):
        assert cascade.state_dict()[f"{name}.{counter}"] == 1
        assert cascade.state_dict()[f"{other}.{counter}"] == 0
    with torch.no_grad():
        x = torch.randn(1, 1, 16, 16, 16)
        assert torch.equal(cascade.eval()(x), getattr(cascade, name)(x))


def test_folded_cascade():
    torch.manual_seed(0)
    cascade = LiverTumourCascade(network(), network()).eval()
    folded, x = cascade.reparameterize(), torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), cascade(x), rtol=0, atol=1e-4)
    assert len(folded.state_dict()) < len(cascade.state_dict())
    with pytest.raises(ValueError, match="The network tumour is Conv3d, which has no"):
        LiverTumourCascade(network(), nn.Conv3d(1, 1, 1)).reparameterize()


def test_stages_that_are_none():
    with pytest.raises(ValueError, match=r"stage is 'tumour'; allowed are 'liver', 'tumor' and"):
        LiverTumourCascade(network(), network(), "tumour")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stage is None; allowed in training"):
        LiverTumourCascade(network(), network()).train()(torch.zeros(1, 1, 16, 16, 16))
