"""The benchmarks run and print what they promise; no time is asserted."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import blocks, catalogue, evaluate, gpu, networks, whole_scan, yardstick
from common import measure
from common.blocks import Mamba
from common.cli.output import table
from common.errors import InputError
from common.networks import recomputation
from common.ops import BACKENDS, fastest_backend, selective_scan_2d, why_not
from common.ops.reference import selective_scan_reference
from common.ops.selective_scan_2d import _in_order
from common.workflows import Catalogue, Figures
from common.workflows.catalogue import Entry

from .conftest import REPOSITORY

PRELOAD = ["benchmarks.networks"]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"benchmarks.{script}", *map(str, arguments), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(text: str, *start: str) -> list[str]:
    """The columns of the one row whose line begins with these columns."""
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    (row,) = [row for row in rows if tuple(row[: len(start)]) == start]
    return row


def test_selective_scan():
    text = run("selective_scan", "--quick")
    for backend in BACKENDS[1:]:
        if why_not(backend, "cpu", torch.float32) is None:
            row = cells(text, "2D 64x64", "1 16 200 16", backend)
            assert float(row[3]) > 0
            row = cells(text, "3D 64^3, n=1", "1 16 200 1", backend)
            assert "%" in "".join(row)
    assert f'which is "{fastest_backend("cpu", torch.float32)}"' in text
    assert cells(text, "2D 64x64: forward, times the loop")[1] == ">= 400"
    if importlib.util.find_spec("mambapy") is None:
        assert "pip install mambapy" in text
        pscan = cells(text, "2D 64x64: forward, times mambapy")
        assert pscan[1:] == [">= 100", "not measured"]


@pytest.mark.slow
def test_memory():
    text = run("memory", "--size", 48, 48, 48, "--classes", 3, "--overlap", 0.25, "--compare")
    for chain in ("bounded", "MONAI's"):
        assert float(cells(text, "3", chain)[2]) > 0
    assert cells(text, "3", "MONAI's")[-1] == "0", "voxels that differ"


def test_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    words = ["evaluate", "--cases", "4", "--size", "40", "40", "20", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(
        evaluate, "in_own_process", lambda run, *arguments, preload: run(*arguments)
    )
    evaluate.main()
    text = capsys.readouterr().out
    for cases in ("1", "2", "4"):
        assert float(cells(text, cases)[1]) > 0
        assert len(cells(text, cases)) == 4


@pytest.mark.slow
def test_networks_in_less_time_and_memory():
    size = ("--size", 32, 32, "--only", "LightMUNet", "--rounds", 1)
    text = run("networks", *size, "--precision", "bfloat16", "--checkpointing")
    assert "image(s) of 32 x 32 in bfloat16, checkpointing on" in text
    assert all(float(cell) > 0 for cell in cells(text, "LightMUNet")[3:])


def test_what_a_network_is_measured_with(monkeypatch):
    """Levels twice in a training step, and logits of the precision."""
    seen: list[torch.dtype] = []

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.ModuleList([nn.Conv2d(1, 3, 1)])

        def forward(self, x):
            y = self.encoder[0](x)
            seen.append(y.dtype)
            return y

    monkeypatch.setitem(networks.NETWORKS, "layer", lambda size: Layer())
    monkeypatch.setitem(recomputation._LEVELS, Layer, r"encoder\.\d+")
    again = []
    monkeypatch.setattr(networks, "median_seconds", lambda *_, **__: 0.0)
    monkeypatch.setattr(
        recomputation, "checkpoint", lambda f, x, **_: again.append(torch.is_grad_enabled()) or f(x)
    )
    arguments = ("layer", [8, 8], 1, "cpu", torch.get_num_threads())
    networks.forward(*arguments, "bfloat16", True)
    assert set(seen) == {torch.bfloat16}
    assert not again  # not in evaluation
    networks.train(*arguments, "bfloat16", True)
    assert set(seen) == {torch.bfloat16}
    assert set(again) == {True}
    again.clear()
    networks.train(*arguments)
    assert seen[-1] == torch.float32
    assert not again


@pytest.mark.slow
def test_networks():
    names = ("LightMUNet", "SegResNet", "SwinUNETR")
    text = run("networks", "--size", 40, 40, "--only", *names, "--rounds", 1)
    for name in names[:2]:
        row = cells(text, name)
        assert len(row) == 9
        parameters = sum(p.numel() for p in networks.NETWORKS[name]([40, 40]).parameters())
        assert float(row[1]) == pytest.approx(parameters / 1e6, abs=0.01)
        assert all(float(cell) > 0 for cell in (row[3], row[6]))
    assert cells(text, "SegResNet")[4] == "1.00"
    why = cells(text, "SwinUNETR")[1]  # 40 is no multiple of 32, and without einops it ends sooner
    assert "must be divisible by" in why or "pip install" in why
    assert "Goals" not in text, "they are of other sizes"


@pytest.mark.slow
def test_exports():
    text = run(
        "exports", "--only", "CodebookMambaUNet", "--forms", "torchscript", "--size", 16, 16, 8
    )
    assert "allowed is 16 and more" in cells(text, "CodebookMambaUNet", "torchscript")[2]
    text = run(
        "exports", "--only", "CodebookMambaUNet", "--forms", "torchscript", "--size", 16, 16, 16
    )
    row = cells(text, "CodebookMambaUNet", "torchscript")
    assert row[2] == "16 x 16 x 16"
    assert float(row[3]) < 1e-4
    assert float(row[4]) > 0
    assert float(row[5]) > 4  # 1.27 M parameters


def test_counts_of_a_network(monkeypatch):
    def layers(size: list[int]) -> nn.Module:
        return nn.Conv2d(1, 5, 3, padding=1, bias=False)

    monkeypatch.setitem(networks.NETWORKS, "layers", layers)
    assert networks.count("layers", [4, 6], 2, "cpu", 1) == (45, 2 * 2 * 45 * 24)


def test_how_far_a_precision_moves_the_logits():
    network = nn.Conv2d(1, 3, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, 1 + 2**-9, -2.0]).view(3, 1, 1, 1))
    image = torch.ones(1, 1, 4, 4)  # 1 + 2^-9 is 1 in bfloat16
    assert networks.logits_moved(network, image, torch.float32) == 0
    assert networks.logits_moved(network, image, torch.bfloat16) == 2**-10


def test_goals_are_of_ratios_to_the_baseline():
    assert networks.goals(networks.Run([256, 256], 4, "cpu", 1)) == []
    assert networks.goals(measured([256, 256], 4, "cpu", 1)) == [
        "\nGoals for LightMUNet with 4 image(s) of 256 x 256, over SegResNet's:",
        "  forward pass: <= 1, measured 0.90, met",
        "  training step: <= 1.3, measured 1.40, NOT met",
        "  memory in training: <= 1.3, measured 1.20, met",
    ]
    volume = networks.goals(measured([96, 96, 96], 1, "cpu", 1))
    assert "with 1 image(s) of 96 x 96 x 96, over" in volume[0]
    assert volume[1:3] == [
        "  forward pass: <= 0.7, measured 0.90, NOT met",
        "  training step: <= 1, measured 1.40, NOT met",
    ]


def measured(*arguments: Any) -> networks.Run:
    run = networks.Run(*arguments)
    for step, ours in ((networks.forward, 0.9), (networks.train, 1.4)):
        run.costs[step, "LightMUNet"] = [networks.Cost(ours, 120)]
        run.costs[step, "SegResNet"] = [networks.Cost(1.0, 100)]
    return run


@pytest.mark.parametrize(
    "arguments",
    [
        ([32, 32, 32], 1, "cpu", 1),
        ([96, 96, 96], 4, "cpu", 1),
        ([256, 256], 1, "cpu", 1),
        ([256, 256], 4, "cuda", 1),
        ([256, 256], 4, "cpu", 1, "bfloat16"),
        ([256, 256], 4, "cpu", 1, "float32", True),
        ([256, 256], 4, "cpu", 1, "float32", False, "identity"),
    ],
)
def test_no_goal_is_met_by_what_it_is_not_of(arguments: tuple[Any, ...]):
    assert networks.goals(measured(*arguments)) == []


def test_a_network_with_another_mixer():
    network = networks.build("LightMUNet", [16, 16], "identity")
    assert not any(isinstance(module, Mamba) for module in network.modules())
    with pytest.raises(ValueError, match="it has no Mamba that conv could replace"):
        networks.build("SegResNet", [16, 16], "conv")


def layers(size: list[int], mixer: str = "mamba") -> nn.Module:
    if mixer == "attention":
        raise ValueError("it is too large")
    return nn.Conv2d(1, 3, 3 if mixer == "mamba" else 1, padding="same", bias=False)


@pytest.mark.parametrize("rounds", [0, 2])
def test_the_catalogue_is_measured(monkeypatch, rounds: int):
    monkeypatch.setattr(networks, "NETWORKS", {"layers": layers})
    monkeypatch.setattr(networks, "WITH_MAMBA", {"layers": layers})
    seconds = iter([1.0, 10.0, 3.0, 20.0])  # of forward pass and step, in turns
    monkeypatch.setattr(networks, "median_seconds", lambda *_, **__: next(seconds))
    monkeypatch.setattr(networks, "peak_memory", lambda run, device: run() or 2**30)

    def here(step, *arguments, preload):
        try:
            return step(*arguments)
        except ValueError as error:
            raise measure.Failed(str(error)) from error

    for module in (networks, catalogue):
        monkeypatch.setattr(module, "in_own_process", here)
    before = Figures(seconds_forward=7.0, machine="another", twins={"conv": [1, 1]})
    told = Catalogue({"2D": [4, 6]}, {"layers": Entry("Layers", "", "", "", {"2D": before})})
    catalogue.measure(told, "2D", ["layers"], torch.get_num_threads(), rounds)
    found = told.entries["layers"].figures["2D"]
    assert (found.parameters, found.flops) == (27, 2 * 27 * 24)
    assert found.twins == {"identity": [3, 2 * 3 * 24], "conv": [3, 2 * 3 * 24]}
    assert found.failed is None
    if rounds:
        assert (found.seconds_forward, found.seconds_training_step) == (2.0, 15.0)
        assert found.peak_memory_bytes == found.peak_memory_training_bytes == 2**30
        assert found.machine == measure.machine("cpu", torch.get_num_threads())
    else:
        assert (found.seconds_forward, found.machine) == (7.0, "another")


@pytest.mark.parametrize(("name", "parameters"), [("Mamba", 32_768), ("attention", 16_640)])
def test_blocks_of_table_3(name: str, parameters: int):
    threads = torch.get_num_threads()
    found, flops, seconds, _ = blocks.measure(name, [2, 64, 3, 2, 2], "cpu", threads)
    assert found == parameters
    assert flops > 2 * 24 * 64 * 64
    assert seconds > 0
    row = blocks.row(name, 10, [(found, flops, 2e-3, 2**20), (found, flops, 1e-3, 2**20)], None)
    assert row[1:3] == [f"{parameters:,}", "10"]
    assert row[4:7] == ["1500", "150", "1.00"]
    assert row[-2:] == {"Mamba": ["96", "8.66"], "attention": ["320", "8.74"]}[name]
    assert blocks.row(name, 3, [(found, flops, 1e-3, 0)], None)[-2:] == ["", ""]
    assert blocks.row(name, 3, [], "too large") == [name, "too large"]


@pytest.mark.slow
def test_blocks():
    text = run("blocks", "--size", 4, 4, 2, "--channels", 16, "--batches", 1, 3, "--rounds", 1)
    for name in blocks.BLOCKS:
        rows = [line.split() for line in text.splitlines() if line.startswith(name)]
        assert [row[2] for row in rows] == ["1", "3"]
        assert all(float(cell) > 0 for row in rows for cell in row[3:6])


def refuses() -> None:
    raise measure.Failed("too large")


def refuses_input() -> None:
    raise RuntimeError("in MONAI's words") from InputError("size is 3; allowed is 4.")


def raises() -> None:
    raise ValueError("3\nand more")


def needs_too_much() -> torch.Tensor:
    return torch.ones(2**36, dtype=torch.float64)


def test_process_that_fails_says_why():
    with pytest.raises(measure.Failed, match=r"^too large$"):
        measure.in_own_process(refuses, preload=PRELOAD)
    with pytest.raises(measure.Failed, match="alloc"):
        measure.in_own_process(needs_too_much, preload=PRELOAD)
    with pytest.raises(measure.Failed, match="ended with code 7"):
        measure.in_own_process(os._exit, 7, preload=PRELOAD)


def keeps(size: int) -> int:
    kept: list[torch.Tensor] = []
    return measure.peak_memory(lambda: kept.append(torch.ones(size, dtype=torch.uint8)), "cpu")


def test_peak_memory_is_what_was_touched():
    size = 200 * 2**20
    assert measure.in_own_process(keeps, size, preload=PRELOAD) == pytest.approx(size, rel=0.05)


def test_what_was_refused_is_told_apart():
    with pytest.raises(measure.Refused, match=r"^size is 3; allowed is 4\.$"):
        measure.in_own_process(refuses_input, preload=PRELOAD)
    with pytest.raises(measure.Failed, match=r"^ValueError: 3$") as failed:
        measure.in_own_process(raises, preload=PRELOAD)
    assert not isinstance(failed.value, measure.Refused)


def test_silence_ends(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with open(1, "w", closefd=False) as buffered:
        monkeypatch.setattr(sys, "stdout", buffered)
        with measure.silenced():
            os.write(1, b"unheard")
            os.write(2, b"unheard")
            buffered.write("unheard, though it is written later")
        os.write(1, b"heard")
    monkeypatch.undo()
    assert capfd.readouterr() == ("heard", "")


def test_median_leaves_the_first_out(monkeypatch):
    runs: list[int] = []
    times = iter([0.0, 5.0, 10.0, 11.0, 20.0, 23.0])
    monkeypatch.setattr(measure, "now", lambda device: next(times))
    assert measure.repeated_seconds(lambda: runs.append(1), "cpu", 3) == 3.0
    assert len(runs) == 4


def test_table_lets_a_last_cell_run_on():
    text = table(("a", "b", "c"), [("x", "1", "2"), ("yy", "a long reason")])
    assert text.splitlines() == ["a   b  c", "--  -  -", "x   1  2", "yy  a long reason"]


def label_map(path: Path, *classes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array(classes, np.uint8).reshape(-1, 1, 1)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


def test_the_yardsticks_test_cases_are_a_fold_of_nnunets(tmp_path: Path):
    split = pytest.importorskip("nnunetv2.utilities.crossval_split", reason="needs the extra: plan")
    names = [f"case_{i}" for i in range(11)]
    for name in names:
        for part in ("imagesTr", "labelsTr"):
            label_map(tmp_path / f"data/{part}/{name}.nii.gz", 0, 1, 2)
    for fold in (0, 4):
        test = yardstick.prepare(tmp_path / "data", tmp_path / "work", fold, None, "MR")
        assert test == split.generate_crossval_split(sorted(names))[fold]["val"]
        raw = tmp_path / "work/raw/Dataset900_Yardstick"
        assert {file.name for file in (raw / "labelsTs").iterdir()} == {f"{n}.nii.gz" for n in test}
        left = {f"{name}_0000.nii.gz" for name in names if name not in test}
        assert {file.name for file in (raw / "imagesTr").iterdir()} == left
        assert json.loads((raw / "dataset.json").read_text())["labels"] == {
            "background": 0,
            "class 1": 1,
            "class 2": 2,
        }


def test_the_yardstick_goes_on_with_what_it_has_of_the_same_setting(tmp_path: Path):
    file, setting = tmp_path / "results.json", {"minutes": 30.0, "overrides": {"batch_size": 2}}
    assert yardstick.resumed(file, setting) == setting
    file.write_text(json.dumps(setting | {"nnunet": {"mean_dice": 0.5}}))
    assert yardstick.resumed(file, setting) == setting | {"nnunet": {"mean_dice": 0.5}}
    assert yardstick.resumed(file, setting | {"minutes": 10.0}) == setting | {"minutes": 10.0}
    assert yardstick.resumed(file, {"seed": 0} | setting) == {"seed": 0} | setting


def test_the_yardstick_counts_as_nnunet_does(tmp_path: Path):
    """A class that is nowhere is left out of the mean; one that the mask alone has is 0."""
    for name, mask, label in (("a", (1, 1, 0, 0), (1, 0, 0, 0)), ("b", (0, 0, 2, 0), (0, 0, 0, 0))):
        label_map(tmp_path / f"masks/{name}_seg.nii.gz", *mask)
        label_map(tmp_path / f"labels/{name}.nii.gz", *label)
    found = yardstick.evaluate(tmp_path / "masks", tmp_path / "labels", ["a", "b"])
    assert found == {"dice": {"class 1": 0.6667, "class 2": 0.0}, "mean_dice": 0.3333}


@pytest.mark.slow
def test_parameters_are_those_of_the_docs():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.parameters"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    page = (REPOSITORY / "docs/comparing.md").read_text()
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 12
    for name, volumes, images in rows:
        assert f"| {volumes} | {images} |" in next(
            line for line in page.splitlines() if line.startswith(f"| `{name}` |")
        )


def test_one_gpu_is_built_for():
    setup = """
cc_flag.append("-gencode")
cc_flag.append("arch=compute_80,code=sm_80")
if new:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_90,code=sm_90")
if newer:
    cc_flag.append("-gencode")
    cc_flag.append("arch=compute_100,code=sm_100")
"""
    for capability in ("90", "80"):
        flags: list[str] = []
        exec(gpu.for_one_gpu(setup, capability), {"cc_flag": flags, "new": True, "newer": True})
        assert flags == ["-gencode", f"arch=compute_{capability},code=sm_{capability}"]


def test_four_copies_are_the_scan_of_a_map(monkeypatch):
    package = ModuleType("mamba_ssm.ops.selective_scan_interface")
    package.selective_scan_fn = lambda *xs: selective_scan_reference(*xs)[0]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    torch.manual_seed(0)
    u, delta, A = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 3, 4, 5), -torch.rand(4, 3, 2)
    B, C = torch.randn(2, 4, 2, 4, 5), torch.randn(2, 4, 2, 4, 5)
    D, bias = torch.randn(4, 3), torch.randn(4, 3)
    expected = selective_scan_2d(u, delta, A, B, C, D, bias, True, backend="reference")
    found = gpu.four_copies(u, _in_order(delta), A, _in_order(B), _in_order(C), D, bias)
    torch.testing.assert_close(found, expected)


def test_what_fails_on_a_gpu_is_a_row():
    def fail() -> dict[str, object]:
        raise TypeError("no such thing\nand more")

    rows = [gpu.attempt({"scan": "a"}, lambda: {"ms": 0.12345}), gpu.attempt({"scan": "b"}, fail)]
    assert gpu.markdown(rows).splitlines() == [
        "| scan | ms | failed |",
        "| --- | --- | --- |",
        "| a | 0.123 |  |",
        "| b |  | TypeError: no such thing |",
    ]


@pytest.mark.slow
def test_contention():
    text = run("contention", "--size", 16, 16, 16, "--busy", 1, "--rounds", 1)
    for step in ("forward", "training"):
        for name in ("LightMUNet", "SegResNet"):
            seconds, _, over_baseline = map(float, cells(text, step, name)[2:])
            assert seconds > 0
            assert name != "SegResNet" or over_baseline == 1


@pytest.mark.slow
def test_whole_scan(tmp_path: Path):
    image = np.random.default_rng(0).integers(-100, 200, (20, 24, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(image, np.diag([3, 3, 5, 1])), tmp_path / "scan.nii.gz")
    sizes = ("--patch_size", 16, 16, 16, "--spacing", 4, 4, 4)
    text = run("whole_scan", "--image", tmp_path / "scan.nii.gz", *sizes, "--rounds", 2)
    for name in ("LightMUNet", "SegResNet"):
        windows, *seconds = map(float, cells(text, name)[1:])
        assert windows == 2  # of 15 x 18 x 11.25 voxels
        assert seconds[3] > 0
        assert sum(seconds[:-1]) == pytest.approx(seconds[-1], abs=0.4)
    assert "medians of 2 rounds" in text


def test_time_is_of_a_step_without_those_that_it_calls(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(whole_scan.time, "perf_counter", lambda: next(now))

    class Outer:
        def run(self) -> None:
            Inner().run()

    class Inner:
        def run(self) -> None: ...

    clock = whole_scan.Clock()
    clock.watch(Outer, "run", "outer")
    clock.watch(Inner, "run", "inner")
    Outer().run()
    assert clock.seconds == {"outer": 8.0, "inner": 2.0}
    assert clock.calls == {"outer": 1, "inner": 1}
