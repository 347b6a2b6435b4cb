"""The command line, in a process of its own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch

from common import evaluation, workflows
from common.cli import main
from common.cli.results import codebook
from common.errors import InputError
from common.networks import CodebookMambaUNet, LightMUNet

from ..conftest import GoldenCase


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "common", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def refused(*arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    # Before the sentence may stand what MONAI says of packages that it lacks.
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    return sentences[0] + "\n"


def test_phantom_then_overlay(tmp_path: Path):
    done = run("phantom", "--output", tmp_path / "data", "--cases", 1, "--seed", 3, "--size", 32)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"1 cases are in {tmp_path}/data\n"
    image, label = (tmp_path / f"data/{part}/liver_000.nii.gz" for part in ("imagesTr", "labelsTr"))
    overlay = ["overlay", "--image", image, "--prediction", label, "--label", label]
    done = run(*overlay, "--output", tmp_path / "o.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "class   Dice",
        "liver   1.0000",
        "tumour  1.0000",
        f"mask:    {label}",
        f"picture: {tmp_path}/o.png",
    ]
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_converted_checkpoint_loads(tmp_path: Path):
    case = GoldenCase("lightm_unet_2d")
    torch.save({"network_weights": case.state_dict}, tmp_path / "theirs.pth")
    names = ["--network", "lightm_unet", "--output", tmp_path / "model.pt"]
    done = run("convert", "--checkpoint", tmp_path / "theirs.pth", *names)
    assert done.returncode == 0, done.stderr
    network = LightMUNet(**case.arguments)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)

    message = refused("convert", "--checkpoint", tmp_path / "none.pth", *names)
    assert "There is no checkpoint" in message
    nowhere = ["--network", "lightm_unet", "--output", tmp_path / "no/folder.pt"]
    message = refused("convert", "--checkpoint", tmp_path / "theirs.pth", *nowhere)
    assert "cannot be written" in message


@pytest.mark.slow
def test_codebook_of_a_trained_network(tmp_path: Path):
    arguments = {"in_channels": 1, "widths": [2, 2, 2, 2], "prototype_dim": 8}
    config = {
        "imports": ["$import torch"],
        "device": "cpu",
        "patch_size": [32, 32, 16],
        "network_def": {
            "_target_": "common.networks.CodebookMambaUNet",
            **arguments,
            "num_prototypes": 8,
        },
        "network": "$@network_def.to(torch.device(@device))",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "common.transforms.LoadCheckedImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
            ],
        },
    }
    (tmp_path / "inference.json").write_text(json.dumps(config))
    network = CodebookMambaUNet(**arguments, num_prototypes=20)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    (tmp_path / "images").mkdir()
    scan, affine = np.random.default_rng(0).normal(size=(40, 32, 16)), np.diag([1.5, 1.5, 3, 1])
    nib.save(nib.Nifti1Image(scan, affine), tmp_path / "images/scan.nii.gz")

    model = ["--checkpoint", tmp_path / "model.pt", "--config_file", tmp_path / "inference.json"]
    data = ["--images", tmp_path / "images", "--output", tmp_path / "out"]
    model += ["--network_def#num_prototypes", 20]
    done = run("codebook", *model, *data)
    assert done.returncode == 0, done.stderr
    assert f"codes:      {tmp_path}/out/scan_codes.nii.gz\n" in done.stdout
    assert " of 20 prototypes\n" in done.stdout
    codes = nib.load(tmp_path / "out/scan_codes.nii.gz")
    assert codes.shape == (40, 32, 16)
    np.testing.assert_array_equal(codes.affine, affine)
    assert (tmp_path / "out/prototypes.png").read_bytes().startswith(b"\x89PNG")

    (tmp_path / "images/scan.nii.gz").write_bytes(b"no image")
    assert "scan.nii.gz cannot be read" in refused("codebook", *model, *data)


def test_codebook_takes_all_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only what it hands on: a trained network is not needed for that."""
    handed: list[object] = []

    def write_code_maps(network: object, preprocessing: object, size: object, images: object):
        handed.extend(images)  # type: ignore[call-overload]
        raise InputError("enough")

    monkeypatch.setattr(evaluation, "write_code_maps", write_code_maps)
    trained = (SimpleNamespace(codebook=object()), None, None)
    monkeypatch.setattr(workflows, "load_trained", lambda *arguments: trained)
    files = [str(tmp_path / f"images/a_000{i}.nii.gz") for i in range(2)]
    (tmp_path / "images").mkdir()
    for file in files:
        Path(file).touch()
    with pytest.raises(InputError, match="enough"):
        codebook("model.pt", str(tmp_path / "images"), str(tmp_path / "out"))
    assert handed == [(files, tmp_path / "out/a_codes.nii.gz")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cases", 0], "cases is 0; allowed are whole numbers from 1"),
        (["--kind", "mri"], "kind is 'mri'; allowed are 'ct', 'mr' and 'cxr'"),
        (["--size", 5], "size is 5; allowed are whole numbers from 32 to 512"),
    ],
)
def test_bad_phantoms_are_named(tmp_path: Path, arguments: list[object], expected: str):
    assert expected in refused("phantom", "--output", tmp_path / "data", *arguments)


def test_somebodys_data_is_not_replaced(tmp_path: Path):
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2)), np.eye(4)), tmp_path / "mine.nii.gz")
    assert "holds other data" in refused("phantom", "--output", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.nii.gz"]


@pytest.mark.parametrize("name", ["2024", "1e3", "a,b", "run#1", "@home"])
def test_paths_are_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    arguments = ["phantom", "--output", name, "--cases", "1", "--size", "32"]
    monkeypatch.setattr(sys, "argv", ["common", *arguments])
    main()
    assert (tmp_path / name / "dataset.json").is_file()


def test_names_in_a_row_are_what_was_typed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["common", "zoo", "pack", "1e3", "--output", "zips"])
    with pytest.raises(SystemExit, match="1e3"):
        main()


def test_flags_that_are_none_are_refused_before_the_work(tmp_path: Path, monkeypatch):
    words = ["check", "--dataset_dir", str(tmp_path / "none"), "--exclude", "a"]
    monkeypatch.setattr(sys, "argv", ["common", *words])
    with pytest.raises(
        SystemExit, match="check has no --exclude; allowed are --dataset_dir; --outp"
    ):
        main()


@pytest.mark.parametrize("word", ["no", "false", "0", "None"])
def test_switches_are_true_or_false(monkeypatch: pytest.MonkeyPatch, word: str):
    """Of --overwrite no a text was made, which is true: a folder would have been replaced."""
    monkeypatch.setattr("common.zoo.install", lambda *arguments: pytest.fail("it was run"))
    monkeypatch.setattr(sys, "argv", ["common", "zoo", "install", "a", "--overwrite", word])
    with pytest.raises(SystemExit) as refused:
        main()
    assert str(refused.value) == f"error: overwrite is {word!r}; allowed are True and False."


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], False),
        (["--overwrite"], True),
        (["--overwrite=True"], True),
        (["--nooverwrite"], False),
    ],
)
def test_switches_may_stand_alone(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: bool
):
    given = []
    monkeypatch.setattr("common.zoo.install", lambda *arguments: given.append(arguments))
    monkeypatch.setattr(sys, "argv", ["common", "zoo", "install", "a", *words])
    main()
    assert given[0][-1] is expected


@pytest.mark.parametrize("verb", ["verify", "ship"])
def test_what_may_not_be_read_is_one_sentence(monkeypatch: pytest.MonkeyPatch, verb: str):
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", denied)
    monkeypatch.setattr(Path, "is_file", denied)
    words = ["--checkpoint", "model.pt", "--kind", "cxr"] if verb == "ship" else []
    monkeypatch.setattr(sys, "argv", ["common", "zoo", verb, "theirs/bundle", *words])
    with pytest.raises(
        SystemExit, match=r"^error: theirs/bundle cannot be read, or written to \(Permission den"
    ):
        main()


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--dataset_dir", ".", "--output", "LONG/report.csv"],
        ["ircadb", "--input", "LONG", "--output", "o"],
        ["plan", "--bundle", "LONG", "--dataset_dir", ".", "--output", "o"],
        ["profile", "--bundle", "LONG"],
        ["zoo", "verify", "LONG"],
    ],
    ids=" ".join,
)
def test_paths_longer_than_any_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    monkeypatch.chdir(tmp_path)
    long = [word.replace("LONG", "x" * 300) for word in words]
    monkeypatch.setattr(sys, "argv", ["common", *long])
    with pytest.raises(
        SystemExit, match=r"^error: \S*x{300}\S* cannot be a path \(File name too l"
    ):
        main()
