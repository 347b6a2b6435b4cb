"""Weights that a bundle ships, and the reference prediction that tells of what is broken."""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checkpoints import load_settings, load_state_dict
from common.cli import main
from common.errors import InputError
from common.networks import LightMUNet
from common.zoo import install, pack, ship, verify, write_index
from common.zoo.archives import sha256
from common.zoo.contract import config, reference
from common.zoo.push import model_card
from common.zoo.ship import Shipped

from .conftest import NAME, SIZES, edit, make_bundle, write_weights

NETWORK = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **SIZES}
SETTINGS: dict[str, Any] = {
    "image_size": [64, 64],
    "network_def": {"_target_": "common.networks.LightMUNet", **NETWORK},
    "label_names": ["class 0", "class 1"],
}
PHANTOM = {"kind": "cxr", "size": 96, "seed": 0}


def trained(bundle: Path, folder: Path) -> Path:
    """Weights that have both classes in an image: the second is where one feature is large."""
    write_weights(bundle, settings=SETTINGS)
    content = torch.load(bundle / "models/model.pt", weights_only=True)
    (bundle / "models/model.pt").unlink()
    head = {name: x for name, x in content["model"].items() if name.startswith("head.conv.")}
    for name, x in head.items():
        x.fill_(name == "head.conv.depthwise.weight")
    head["head.conv.pointwise.weight"][1, 0] = 1
    head["head.conv.pointwise.bias"][0] = 0.3
    torch.save(content | {"optimizer": {"state": {}}}, folder / "trained.pt")
    return folder / "trained.pt"


@pytest.fixture
def bare(bundle: Path) -> Path:
    """The small bundle without weights."""
    (bundle / "models/model.pt").unlink()
    return bundle


@pytest.fixture
def shipped(bare: Path, tmp_path: Path) -> tuple[Path, Shipped]:
    return bare, ship(bare, trained(bare, tmp_path), **PHANTOM)


def test_a_bundle_knows_its_weights_by_one_command(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    checkpoint = trained(bare, tmp_path)
    monkeypatch.setattr("logging.disable", lambda level: None)
    options = [word for name, value in PHANTOM.items() for word in (f"--{name}", str(value))]
    command = ["common", "zoo", "ship", str(bare), "--checkpoint", str(checkpoint), *options]
    monkeypatch.setattr(sys, "argv", command)
    main()
    said = capsys.readouterr().out
    digest = sha256(bare / "models/model.pt")
    assert digest in said
    assert re.search(r"reference: \d+ voxels of background, \d+ voxels of lung\n", said)

    metadata = config(bare, "metadata")
    assert metadata["weights"] == {"models/model.pt": digest}
    assert metadata["reference_prediction"] == {
        "phantom": PHANTOM,
        "label_map": "models/reference.png",
        "min_dice": 0.98,
    }
    names = list(metadata["network_data_format"]["outputs"]["pred"]["channel_def"].values())
    told = SETTINGS | {"label_names": names}
    assert load_settings(bare / "models/model.pt") == told
    assert json.loads((bare / "models/settings.json").read_text()) == told
    theirs, ours = (load_state_dict(f) for f in (checkpoint, bare / "models/model.pt"))
    assert all(torch.equal(theirs[name], x) for name, x in ours.items())
    # And no more: no optimiser's state.
    assert set(torch.load(bare / "models/model.pt", weights_only=True)) == set(theirs)
    assert all(found == [] for _, found in verify(bare))


def test_other_metadata_stays(shipped: tuple[Path, Shipped], tmp_path: Path):
    before = config(make_bundle(tmp_path / "as it was"), "metadata")
    after = config(shipped[0], "metadata")
    assert list(after) == [*before, "weights", "reference_prediction"]
    assert {name: after[name] for name in before} == before


def test_shipped_weights_are_packed_and_installed(shipped: tuple[Path, Shipped], tmp_path: Path):
    bundle, (_, digest, _) = shipped
    archive, left_out = pack(bundle, tmp_path / "zips")
    assert left_out == []
    with zipfile.ZipFile(archive) as content:
        names = {x.removeprefix(f"{NAME}/") for x in content.namelist() if "/models/" in x}
    assert names == {f"models/{x}" for x in ("model.pt", "settings.json", "reference.png")}
    index = tmp_path / "index.json"
    write_index(index, archive.parent, archive.parent.as_uri())
    installed = install(NAME, index=index, output=tmp_path / "out")
    assert sha256(installed / "models/model.pt") == digest
    assert list(reference(installed)) == []
    (bundle / "models/reference.png").unlink()
    with pytest.raises(InputError, match=r"reference: models/reference\.png is missing"):
        pack(bundle, tmp_path / "zips")


def lung(failure: str) -> float:
    """The Dice of the one class in a sentence of the check."""
    found = re.match(
        r"in a phantom \(kind cxr, size 96, seed 0\) class 1 has a Dice of ([\d.]+) with "
        r"models/reference\.png, and needed is 0\.98: here, with torch [^ ]+, monai [^ ]+, numpy",
        failure,
    )
    assert found is not None, failure
    return float(found[1])


def flipped(forward: Callable) -> Callable:
    return lambda self, x: forward(self, x.flip(2))


def shifted(forward: Callable) -> Callable:
    return lambda self, x: forward(self, x).roll(3, 2)


@pytest.mark.parametrize("broken", [flipped, shifted])
def test_a_broken_environment_is_noticed(
    shipped: tuple[Path, Shipped], broken: Callable, monkeypatch: pytest.MonkeyPatch
):
    """The same weights: what computes with them is another."""
    bundle, _ = shipped
    assert list(reference(bundle)) == []
    monkeypatch.setattr(LightMUNet, "forward", broken(LightMUNet.forward))
    (failure,) = reference(bundle)
    assert lung(failure) < 0.98


def test_noise_of_arithmetic_is_no_failure(
    shipped: tuple[Path, Shipped], monkeypatch: pytest.MonkeyPatch
):
    bundle, _ = shipped
    forward = LightMUNet.forward

    def noisy(self: LightMUNet, x: torch.Tensor) -> torch.Tensor:
        logits = forward(self, x)
        generator = torch.Generator().manual_seed(0)
        return logits + 1e-4 * torch.randn(logits.shape, generator=generator)

    monkeypatch.setattr(LightMUNet, "forward", noisy)
    assert list(reference(bundle)) == []


def test_other_weights_are_noticed(shipped: tuple[Path, Shipped], tmp_path: Path):
    bundle, _ = shipped
    content = torch.load(bundle / "models/model.pt", weights_only=True)
    content["stem.pointwise.weight"].neg_()
    torch.save(content, bundle / "models/model.pt")
    failures = dict(verify(bundle))
    assert "the metadata says" in failures["weights"][0]
    assert "reference" not in failures, "it runs no weights that it does not know"
    digest = sha256(bundle / "models/model.pt")
    edit(bundle, "metadata", lambda x: x.update(weights={"models/model.pt": digest}))
    (failure,) = reference(bundle)
    assert "cannot" not in failure


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"min_dice": 0}, "allowed are phantom, with kind, size and seed, label_map"),
        ({"min_dice": "1"}, "allowed are phantom"),
        ({"label_map": "../elsewhere.png"}, "which is models/reference.nii.gz or models/reference"),
        ({"phantom": {"kind": "cxr"}}, "allowed are phantom"),
        ({"other": 1}, "allowed are phantom"),
        ({"label_map": "models/reference.nii.gz"}, "models/reference.nii.gz is missing"),
    ],
)
def test_references_that_are_none(
    shipped: tuple[Path, Shipped], change: dict[str, Any], sentence: str
):
    bundle, _ = shipped
    edit(bundle, "metadata", lambda x: x["reference_prediction"].update(change))
    (failure,) = reference(bundle)
    assert sentence in failure
    edit(bundle, "metadata", lambda x: x.update(reference_prediction=[]))
    (failure,) = reference(bundle)
    assert failure.startswith("reference_prediction of metadata.json is []; allowed are phantom")


def test_a_reference_of_no_weights(shipped: tuple[Path, Shipped]):
    bundle, _ = shipped
    edit(bundle, "metadata", lambda x: x.pop("weights"))
    assert list(reference(bundle)) == [
        "reference_prediction of metadata.json is of weights, and weights names none"
    ]


def test_what_is_not_shipped(bare: Path, tmp_path: Path):
    """The bundle is as it was."""
    checkpoint = trained(bare, tmp_path)
    before = {file: file.read_bytes() for file in bare.rglob("*") if file.is_file()}

    def refused(file: Path = checkpoint, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            ship(bare, file, **PHANTOM | options)
        assert before == {file: file.read_bytes() for file in bare.rglob("*") if file.is_file()}
        return str(error.value)

    assert "There is no checkpoint" in refused(tmp_path / "none.pt")
    assert "min_dice is 2; allowed are numbers above 0 and at most 1" in refused(min_dice=2)
    assert "kind is 'us'; allowed are" in refused(kind="us")
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content["model"], tmp_path / "old.pt")
    assert "has no settings of its training" in refused(tmp_path / "old.pt")
    settings = SETTINGS | {"network_def": {"_target_": "os.system"}}
    torch.save(content | {"settings": settings}, tmp_path / "evil.pt")
    assert "which might run any code" in refused(tmp_path / "evil.pt")
    content["model"]["head.conv.pointwise.bias"][0] = 100
    torch.save(content, tmp_path / "blind.pt")
    assert "Of lung the weights find 0 voxels in the phantom of kind cxr" in refused(
        tmp_path / "blind.pt"
    )


def test_weights_that_nobody_else_has_are_not_lost(shipped: tuple[Path, Shipped], tmp_path: Path):
    bundle, (weights, *_) = shipped
    again = tmp_path / "again.pt"
    again.write_bytes(weights.read_bytes())
    assert ship(bundle, again, **PHANTOM).voxels == shipped[1].voxels  # what ships already
    write_weights(bundle, seed=3, settings=SETTINGS)
    own = weights.read_bytes()
    with pytest.raises(InputError, match=r"model\.pt would be lost, and metadata\.json does not"):
        ship(bundle, again, **PHANTOM)
    assert weights.read_bytes() == own


def test_the_hubs_card_has_the_weights_licence(shipped: tuple[Path, Shipped]):
    bundle, _ = shipped
    readme = "# Lungs\n"
    (bundle / "docs/README.md").write_text(readme)
    head = "---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: {}\n---\n"
    assert model_card(bundle) == head.format("apache-2.0") + readme
    edit(bundle, "metadata", lambda x: x.update(weights_license="CC-BY-NC-SA-4.0"))
    assert model_card(bundle) == head.format("cc-by-nc-sa-4.0") + readme
    (bundle / "models/model.pt").unlink()
    assert model_card(bundle) == head.format("apache-2.0") + readme
    (bundle / "models/model.pt").touch()
    edit(bundle, "metadata", lambda x: x.update(weights_license="mine\nother: 1"))
    with pytest.raises(InputError, match=r"weights_license of metadata\.json is 'mine"):
        model_card(bundle)
