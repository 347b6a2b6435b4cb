"""Several checkpoints as one network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.inferers import SimpleInferer
from torch import nn

from common import scratch
from common.checkpoints import check_checkpoint, members
from common.errors import InputError
from common.inferers import EnsembleInferer, FlipInferer


def save(file: Path, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, file)
    return network


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_mean_of_probabilities(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scratch, "_SLAB", 2**10)
    files = [tmp_path / f"{n}.pt" for n in range(3)]
    networks = [save(file, seed) for seed, file in enumerate(files)]
    volume = torch.randn(1, 1, 9, 8, 7) * 30  # so that some probabilities are 0 and 1
    single = FlipInferer(SimpleInferer(), [0, 2])
    activate = torch.sigmoid if activation == "sigmoid" else lambda x: x.softmax(1)
    each = torch.stack([activate(single(volume, network)) for network in networks])
    assert (each == 1).any()
    expected = each.mean(0)

    target = nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
    found = EnsembleInferer(single, files, activation)(volume, target)
    assert found.isfinite().all()
    torch.testing.assert_close(activate(found), expected, rtol=0, atol=1e-6)


def test_one_channel_is_a_sigmoids(tmp_path: Path):
    """The softmax of one is 1 everywhere, whatever the network says."""
    files = [tmp_path / f"{n}.pt" for n in range(2)]
    networks = [nn.Conv3d(1, 1, 1).requires_grad_(False) for _ in files]
    for network, file in zip(networks, files, strict=True):
        torch.save(network.state_dict(), file)
    volume = torch.randn(1, 1, 4, 4, 4)
    expected = torch.stack([network(volume).sigmoid() for network in networks]).mean(0)
    found = EnsembleInferer(SimpleInferer(), files)(
        volume, nn.Conv3d(1, 1, 1).requires_grad_(False)
    )
    torch.testing.assert_close(found.sigmoid(), expected)


def test_one_member_is_who_calls_business():
    """MONAI Label and Deploy load it themselves, from where they have it."""
    network = nn.Conv3d(1, 3, 1).requires_grad_(False)
    volume = torch.randn(1, 1, 4, 4, 4)
    found = EnsembleInferer(SimpleInferer(), ["there/is/none.pt"])(volume, network)
    assert torch.equal(found, network(volume))
    with pytest.raises(InputError, match="activation is 'relu'; allowed are softmax and sigmoid"):
        EnsembleInferer(SimpleInferer(), [], "relu")


def test_members(tmp_path: Path):
    def names(checkpoint: object) -> list[str]:
        return [str(Path(file).relative_to(tmp_path)) for file in members(checkpoint)]  # type: ignore[arg-type]

    file = tmp_path / "model.pt"
    assert names(file) == names(str(file)) == ["model.pt"]
    two = [str(tmp_path / name) for name in ("b.pt", "a.pt")]
    assert names(two) == names(tuple(two)) == names(str(two)) == ["b.pt", "a.pt"]
    assert members("[fold].pt") == ["[fold].pt"]
    assert members("[fold]") == ["[fold]"]

    with pytest.raises(InputError, match=r"has no \*.pt; allowed as checkpoint"):
        members(tmp_path)
    with pytest.raises(InputError, match="checkpoint is an empty list"):
        members([])
    for name in ("last_epoch.pt", "b.pt", "a.pt"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a.pt", "b.pt"]

    for fold in (10, 9, 0):
        save(tmp_path / f"fold_{fold}/models/model.pt", fold)
    assert names(tmp_path) == [f"fold_{n}/models/model.pt" for n in (0, 9, 10)]
    (tmp_path / "fold_3").mkdir()
    with pytest.raises(InputError, match=r"has no fold_3/models/model\.pt"):
        members(tmp_path)


def test_each_member_is_checked(tmp_path: Path):
    network = save(tmp_path / "a.pt", 0)
    torch.save(nn.Conv3d(1, 4, 3).state_dict(), tmp_path / "b.pt")
    check_checkpoint([tmp_path / "a.pt"], network)
    with pytest.raises(InputError, match=r"b.pt is not of this Conv3d: weight has shape"):
        check_checkpoint([tmp_path / "a.pt", tmp_path / "b.pt"], network)
