"""Costs of bundles' networks; no time is asserted but that it was taken."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import SegResNet
from torch import nn

from common.cli import main
from common.errors import InputError
from common.measure import Failed
from common.networks import LightMUNet
from common.ops import count_flops
from common.workflows import Costs, cost_rows, costs, profile

from ..conftest import REPOSITORY
from ..test_skin_lesion_bundle import SMALL as VM_UNET
from ..test_swin_umamba_bundle import SMALL as SWIN

BUNDLES = REPOSITORY / "bundles"
LUNG = BUNDLES / "lung_cxr_lightm_unet_segmentation"
LIVER = BUNDLES / "liver_ct_lightm_unet_segmentation"
CODEBOOK = BUNDLES / "liver_tumor_ct_codebook_mamba_segmentation"
# Of networks with these arguments, as SegResNet and LightMUNet are.
ARGUMENTS = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
SMALL = {f"network_def#{name}": value for name, value in ARGUMENTS.items()}
SMALL_LUNG = SMALL | {"image_size": [32, 24], "batch_size": 2}
SKIN = "skin_lesion_rgb_vm_unet_segmentation"


def job(bundle: Path, **given: Any) -> costs._Job:
    usual = {"networks": None, "checkpoint": None, "volume": None, "device": "cpu"}
    usual |= {"batch": 1, "repeats": 1, "overrides": {}}
    *_, found = costs._jobs(bundle, **(usual | given)).values()
    return found


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Costs], Path]:
    output = tmp_path_factory.mktemp("costs") / "out"
    found = profile(
        LUNG, output, "segresnet", volume=[40, 48], device="cpu", repeats=1, overrides=SMALL_LUNG
    )
    return found, output


def test_counts_are_the_networks_own(measured: tuple[dict[str, Costs], Path]):
    found, _ = measured
    assert list(found) == [LUNG.name, "segresnet"]
    for cost, network in (
        (found[LUNG.name], LightMUNet(2, 1, 2, **ARGUMENTS)),
        (found["segresnet"], SegResNet(2, in_channels=1, out_channels=2, **ARGUMENTS)),
    ):
        assert cost.network == type(network).__name__
        assert cost.parameters == cost.trainable_parameters == parameters(network)
        assert cost.input_size == [32, 24]
        assert cost.flops == count_flops(network, (1, 1, 32, 24)) == 2 * cost.macs


def test_all_is_measured(measured: tuple[dict[str, Costs], Path]):
    for cost in measured[0].values():
        assert cost.not_measured == {}
        assert min(cost.seconds_forward, cost.seconds_training_step, cost.seconds_volume) > 0
        assert cost.training_batch == 2
        assert cost.volume == {"size": [40, 48], "precision": "float32"}
        peaks = (cost.peak_memory_bytes, cost.peak_memory_training_bytes)
        assert 0 < cost.base_memory_bytes < min(*peaks, cost.peak_memory_volume_bytes)
        assert "threads" in cost.machine


def test_what_is_written(measured: tuple[dict[str, Costs], Path]):
    found, output = measured
    assert {path.name for path in output.iterdir()} == found.keys()
    for name, cost in found.items():
        assert [path.name for path in (output / name).iterdir()] == ["costs.json"]
        written = json.loads((output / name / "costs.json").read_text())
        assert written == dataclasses.asdict(cost)
        assert written.keys() >= {
            *("machine", "parameters", "flops", "input_size", "seconds_forward"),
            *("seconds_training_step", "peak_memory_bytes", "seconds_volume"),
        }


def test_table_by_hand():
    cost = Costs(
        *("Net", "a machine", "cpp", "float32", 1_234_567, 1_000_000, [96, 96, 48]),
        **{"flops": 3_000_000_000, "macs": 1_500_000_000, "batch": 4, "seconds_forward": 2.0},
        peak_memory_bytes=2**29,
    )
    header, row = cost_rows({"net": cost})
    assert dict(zip(header, row, strict=True)) == {
        "network": "net",
        "input": "96 x 96 x 48",
        "M parameters": "1.235",
        "trainable": "1.000",
        "GFLOP": "3.00",
        "GMAC": "1.50",
        "ms an image": "500",
        "s a step": "",
        "s a volume": "",
        "GiB": "0.50",
        "GiB training": "",
        "GiB volume": "",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"bundle": REPOSITORY}, r"There is no .*configs/train\.json; needed is a bundle, by --bu"),
        ({"bundle": f"{LIVER},{LIVER}"}, "A bundle is named twice: .*; allowed is once"),
        ({"bundle": [LIVER, LUNG], "networks": "unetr"}, "2 bundles are named; allowed with netw"),
        (
            {"networks": "unet"},
            r"networks has 'unet'; allowed are those of .*: attention_unet, bas",
        ),
        ({"networks": "unetr,unetr"}, "A network is named twice: unetr; unetr; allowed is once"),
        ({"networks": "unetr", "checkpoint": "a.pt"}, "checkpoint is a.pt, which has its own netw"),
        ({"checkpoint": "none.pt"}, r"There is no checkpoint .*none\.pt; training writes one"),
        ({"volume": "none.nii.gz"}, r"There is no image .*none\.nii\.gz; allowed are a file and"),
        ({"volume": [64, 64]}, None),
        ({"volume": [64]}, r"volume is \[64\]; allowed are an image's file, and two or three"),
        ({"volume": [64, 64, 0]}, r"volume is \[64, 64, 0\]; allowed are an image's file"),
        ({"device": "tpu"}, "device is 'tpu'; allowed on this machine are cpu"),
        ({"batch": 0}, "batch is 0; allowed are whole numbers from 1"),
        ({"repeats": True}, "repeats is True; allowed are whole numbers from 1"),
        (
            {"overrides": {"patchsize": 3}},
            "has no patchsize in train.json or inference.json; the nearest is patch_size",
        ),
        ({"overrides": {"patch_size": [4, 4]}}, r"patch_size is \[4, 4\]; allowed are 3 whole num"),
        ({"overrides": {"patch_size": [1, 4, 4]}}, r"patch_size is 1 x 4 x 4, which liver_ct_\w+ "),
        ({"overrides": {"network_def#filters": 3}}, r"segmentation cannot be built \(.*'filters'"),
        ({"overrides": {"precision": "float8"}}, "precision is 'float8'; allowed are"),
        ({"output": "file"}, "The output folder file cannot be written to"),
    ],
)
def test_what_cannot_be_measured_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], expected: str | None
):
    """In a sentence, before anything takes time."""

    class Began(Exception):
        pass

    def measure(*_: object) -> None:
        raise Began

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(costs, "_measure", measure)
    given = {"bundle": LIVER, "output": "out"} | arguments
    given["overrides"] = SMALL | {"patch_size": [16, 16, 16]} | arguments.get("overrides", {})
    if expected is None:
        with pytest.raises(Began):
            profile(**given)
    else:
        with pytest.raises(InputError, match=expected):
            profile(**given)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_size_that_a_compared_network_cannot_halve():
    with pytest.raises(InputError, match="patch_size is 16 x 16 x 16, of which the network would"):
        costs._counted(job(LIVER, networks="unetr", overrides={"patch_size": [16, 16, 16]}))


def test_size_is_rounded_up_for_a_compared_network():
    small = {"patch_size": [20, 20, 12], "network_def#channels": [4, 4, 4, 4, 4]}
    cost = costs._counted(job(LIVER, networks="attention_unet", overrides=small))
    assert cost.network == "AttentionUnet"
    assert cost.input_size == [32, 32, 16]


def test_a_checkpoints_settings_build_its_network(tmp_path: Path):
    network = LightMUNet(3, 2, 4, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
    weights = OrderedDict(network.state_dict())
    described = {"_target_": "common.networks.LightMUNet", "spatial_dims": 3, "in_channels": 2}
    weights.settings = {  # type: ignore[attr-defined]
        "in_channels": 2,
        "num_classes": 4,
        "patch_size": [8, 16, 16],
        "network_def": described | {"out_channels": 4} | ARGUMENTS,
    }
    file = tmp_path / "model.pt"
    torch.save(weights, file)
    cost = costs._counted(job(LIVER, checkpoint=file))
    assert cost.parameters == parameters(network)
    assert cost.input_size == [8, 16, 16]
    assert cost.flops == count_flops(network, (1, 2, 8, 16, 16))

    with pytest.raises(InputError, match=r"model\.pt is not of this LightMUNet"):
        costs._counted(job(LIVER, checkpoint=file, overrides={"network_def#init_filters": 16}))
    weights.settings["network_def"]["_target_"] = "os.system"  # type: ignore[attr-defined]
    torch.save(weights, file)
    with pytest.raises(InputError, match="which might run any code"):
        costs._counted(job(LIVER, checkpoint=file))


def test_frozen_parameters_are_not_trainable():
    small = {"patch_size": [16, 16, 16], "network_def#widths": [2, 2, 2, 2, 2]}
    small = {name.replace("def#", "def#liver#"): value for name, value in small.items()}
    cost = costs._counted(
        job(BUNDLES / "liver_tumor_ct_elanres_msca_segmentation", overrides=small)
    )
    assert cost.network == "LiverTumourCascade"
    assert 0 < cost.trainable_parameters < cost.parameters / 100  # of the small one, the liver's


def test_what_fails_is_empty_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(function: Any, *arguments: Any, preload: Any) -> Any:
        if function is costs._count:
            return costs._count(*arguments)
        raise Failed("MemoryError: too large")

    monkeypatch.setattr(costs, "in_own_process", fail)
    found = profile(LUNG, tmp_path, volume=[40, 48], device="cpu", overrides=SMALL_LUNG)
    fields = ("seconds_forward", "seconds_training_step", "seconds_volume")
    assert found[LUNG.name].not_measured == dict.fromkeys(fields, "MemoryError: too large")
    written = json.loads((tmp_path / "costs.json").read_text())
    assert [written[field] for field in fields] == [None] * 3
    assert written["parameters"] == found[LUNG.name].parameters


def test_networks_that_the_meta_device_cannot_run(monkeypatch: pytest.MonkeyPatch):
    def counted(*_: object) -> int:
        raise RuntimeError("Tensor.item() cannot be called on meta tensors\nand more")

    monkeypatch.setattr(costs, "count_flops", counted)
    cost = costs._count(job(LUNG, overrides=SMALL_LUNG))
    assert cost.flops is cost.macs is None
    assert cost.not_measured == {"flops": "Tensor.item() cannot be called on meta tensors"}


SMALL_OF: dict[str, dict[str, Any]] = {
    "abdomen_ct_umamba_segmentation": {
        "network_def#features": [4, 4, 4, 4, 4, 4],
        "patch_size": [64, 64, 16],
    },
    "brain_tumor_mr_segmamba_segmentation": {
        "network_def#features": [4, 4, 4, 4],
        "network_def#hidden_size": 4,
        "patch_size": [64, 32, 32],
    },
    LIVER.name: SMALL | {"patch_size": [32, 32, 16]},
    CODEBOOK.name: {
        "network_def#widths": [2, 2, 2, 2],
        "network_def#prototype_dim": 8,
        "patch_size": [32, 32, 16],
    },
    "liver_tumor_ct_elanres_msca_segmentation": {
        "network_def#liver#widths": [2, 2, 2, 2, 2],
        "network_def#tumour#widths": [2, 2, 2, 2, 2],
        "patch_size": [32, 32, 16],
    },
    "liver_tumor_ct_lcmambanet_segmentation": {"patch_size": [32, 32]},
    "liver_tumor_ct_mambaclinix_segmentation": {
        "network_def#features": [16, 16, 16, 16, 16, 16],
        "patch_size": [64, 64, 32],
    },
    LUNG.name: SMALL_LUNG,
    "abdomen_mr_swin_umamba_segmentation": SWIN | {"batch_size": 1, "slices_per_case": 2},
    SKIN: VM_UNET | {"batch_size": 2},
}
BATCH = {"liver_tumor_ct_lcmambanet_segmentation": 16, CODEBOOK.name: 1}


@pytest.mark.parametrize("name", [LIVER.name, CODEBOOK.name])
def test_a_training_step_is_the_bundles(name: str):
    _check_training_step(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL_OF.keys() - {LIVER.name, CODEBOOK.name}))
def test_a_training_step_is_every_bundles(name: str):
    _check_training_step(name)


def _check_training_step(name: str) -> None:
    steps: list[Any] = []
    attach = costs._Steps.attach

    def watched(self: costs._Steps, engine: Any) -> None:
        steps.append(engine)
        attach(self, engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs._Steps, "attach", watched)
        found = costs._train(job(BUNDLES / name, repeats=2, overrides=SMALL_OF[name]))
    assert found["training_batch"] == BATCH.get(name, 2)
    assert found["seconds_training_step"] > 0
    (trainer,) = steps
    assert trainer.state.iteration == 3
    assert torch.isfinite(trainer.state.output["loss"])
    assert trainer.optimizer.state  # it took steps


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL_OF.keys() - {LUNG.name, SKIN}))
def test_a_volume_goes_through_every_bundles_inference(name: str):
    found = costs._segment(job(BUNDLES / name, volume=[40, 36, 20], overrides=SMALL_OF[name]))
    assert found["seconds_volume"] > 0
    assert found["volume"] == {
        "size": [40, 36, 20],
        "spacing": [0.75, 0.75, 1.0],
        "precision": "float32",
    }


@pytest.mark.slow
def test_a_photograph_goes_through_inference():
    found = costs._segment(job(BUNDLES / SKIN, volume=[40, 48], overrides=SMALL_OF[SKIN]))
    assert found["volume"] == {"size": [40, 48], "precision": "float32"}


@pytest.mark.slow
def test_an_image_that_is_given(tmp_path: Path):
    file = tmp_path / "image.nii.gz"
    costs._write_image(file, [40, 36, 20], channels=1)
    found = costs._segment(job(LIVER, volume=str(file), overrides=SMALL_OF[LIVER.name]))
    assert found["volume"] == {"file": "image.nii.gz", "precision": "float32"}
    file.write_bytes(b"no image")
    with pytest.raises(Failed, match=r"image\.nii\.gz cannot be read"):
        costs._segment(job(LIVER, volume=str(file), overrides=SMALL_OF[LIVER.name]))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    words = ["--bundle", str(LUNG), "--device", "cpu", "--output", "1e3", "--repeats", "1"]
    words += [f"--{name}={value}" for name, value in SMALL_LUNG.items()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["common", "profile", *words, "--batch", "3"])
    main()
    written = json.loads((tmp_path / "1e3/costs.json").read_text())
    assert written["batch"] == 3
    assert written["seconds_volume"] is None
    first, _, header, _, row, last = capsys.readouterr().out.splitlines()
    assert first.startswith(written["machine"])
    assert header.startswith("network  ")
    assert row.split()[:4] == [LUNG.name, "32", "x", "24"]
    assert last == "costs: 1e3"

    def measure(job: costs._Job, found: Costs) -> None:
        assert job.volume == tmp_path / "1e3"
        found.not_measured["seconds_forward"] = "too large"

    monkeypatch.setattr(costs, "_measure", measure)
    monkeypatch.setattr(sys, "argv", ["common", "profile", *words, "--volume", "1e3"])
    with pytest.raises(SystemExit) as failed:
        main()
    assert LUNG.name in capsys.readouterr().out  # its table
    why = f"Not measured: {LUNG.name}'s seconds_forward (too large)."
    assert str(failed.value) == f"error: {why}"
