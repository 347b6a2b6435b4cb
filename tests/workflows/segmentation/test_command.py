"""The command line of segment, in processes of its own."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ... import preloaded
from ...faults.trainings import wait_for
from .conftest import save_scan


def test_command(ct_bundle: Path, tmp_path: Path):
    """-o is --output; what is typed stays as it is; a bundle's own ids are taken."""
    image = save_scan(tmp_path / "scan.nii.gz")
    words = [image, "-o", "1234", "--bundle", ct_bundle, "--device", "cpu", "--statistics"]
    words += ["--roi_subset", "liver", "--keep_largest_component", "True", "--ml", "False"]
    done = preloaded.run("common", "segment", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"scan: {tmp_path.resolve()}/1234/scan\n"
    manifest = json.loads((tmp_path / "1234/scan/manifest.json").read_text())
    assert manifest["options"]["overrides"] == {"keep_largest_component": True}
    assert manifest["files"] == {
        "statistics": "statistics.json",
        "masks": {"liver": "liver.nii.gz"},
    }
    mask = np.asarray(nib.load(tmp_path / "1234/scan/liver.nii.gz").dataobj)
    assert mask.sum() == manifest["voxels"]["liver"] > 0


def test_what_failed_is_said_and_the_exit_code_is_1(ct_bundle: Path, tmp_path: Path):
    image = save_scan(tmp_path / "scan.nii.gz")
    (tmp_path / "broken.nii").write_bytes(b"no image")
    words = [tmp_path / "broken.nii", image, "-o", tmp_path / "out", "--bundle", ct_bundle]
    done = preloaded.run("common", "segment", *words, "--device", "cpu")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    out = tmp_path.resolve() / "out"
    first, second = done.stdout.splitlines()
    assert first == f"scan: {out}/scan"
    assert second.startswith(f"failed: The image {tmp_path}/broken.nii cannot be read")
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: 1 of the inputs failed, or lack something")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--previw", "True"], "segment has no option previw"),
        (["--preview", "scan.nii.gz"], "preview is 'scan.nii.gz'; allowed are True and False"),
        (["--gpus", "2"], "gpus is 2; allowed is none, but with the engine ray"),
    ],
)
def test_mistyped(ct_bundle: Path, tmp_path: Path, words: list[str], sentence: str):
    given = ["scan.nii.gz", "-o", tmp_path / "out", "--bundle", ct_bundle, *words]
    done = preloaded.run("common", "segment", *given, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert sentence in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_in_the_middle(ct_bundle: Path, tmp_path: Path):
    """What is done is complete, and the same command finishes the rest."""
    for name in range(20):
        save_scan(tmp_path / f"scans/{name}.nii.gz", seed=name)
    words = [tmp_path / "scans", "-o", tmp_path / "out", "--bundle", ct_bundle]
    words += ["--device", "cpu", "--preview", "--overwrite", "False"]
    running = preloaded.start("common", "segment", *words)
    wait_for(tmp_path / "out/1/manifest.json", running)
    running.kill()
    running.end()
    complete = {path.parent.name for path in (tmp_path / "out").glob("*/manifest.json")}
    assert 1 <= len(complete) < 20
    assert len(list((tmp_path / "out").glob(".partial-*"))) == 1
    for name in complete:
        names = {path.name for path in (tmp_path / "out" / name).iterdir()}
        assert names == {f"{name}.nii.gz", "preview.png", "manifest.json"}
    times = {name: (tmp_path / f"out/{name}/manifest.json").stat().st_mtime_ns for name in complete}
    done = preloaded.run("common", "segment", *words)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*/manifest.json"))) == 20
    assert not list((tmp_path / "out").glob(".partial-*"))
    for name, before in times.items():
        assert (tmp_path / f"out/{name}/manifest.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_twelve_studies_on_a_cluster_that_loses_a_node(ct_bundle: Path, tmp_path: Path, cluster):
    from common.workflows import segment

    for number in range(12):
        save_scan(tmp_path / f"scans/{number}.nii.gz", seed=number)
    (tmp_path / "scans/broken.nii").write_bytes(b"no image")
    (other,) = cluster.worker_nodes
    out = tmp_path / "out"

    def kill() -> None:
        until = time.monotonic() + 200
        while len(list(out.glob("*/manifest.json"))) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)

    killing = threading.Thread(target=kill)
    killing.start()
    found = segment(
        *(tmp_path / "scans", out, ct_bundle),
        device="cpu",
        engine="ray",
        address=cluster.address,
    )
    killing.join()
    assert sorted(found.done) == sorted(str(number) for number in range(12))
    assert list(found.failed) == ["broken"]
    assert "broken.nii cannot be read" in found.failed["broken"]
    masks = [path.relative_to(out) for path in out.rglob("*.nii.gz")]
    finished = {path.as_posix() for path in masks if not path.parts[0].startswith(".jobs-")}
    assert finished == {f"{number}/{number}.nii.gz" for number in range(12)}
    rows = (out / "summary.csv").read_text().splitlines()
    assert len(rows) == 1 + 13
    here = segment(tmp_path / "scans/7.nii.gz", tmp_path / "here", ct_bundle, device="cpu")
    one, same = (nib.load(folder / "7.nii.gz") for folder in (here.done["7"], found.done["7"]))
    # But for ties: a task of Ray's has one thread.
    assert (np.asarray(one.dataobj) != np.asarray(same.dataobj)).mean() < 0.002
    assert len(list(out.glob(".jobs-*/*/log.txt"))) == 13  # one failed
