"""MONAI Label's own server and client, with two bundles at once on the real CT."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from scipy import ndimage

from .conftest import REPOSITORY, shared

pytest.importorskip("monailabel", reason="needs MONAI Label's own environment: make test-label")
from monailabel.client import MONAILabelClient

pytestmark = pytest.mark.monai_label

VOLUMES = "liver_ct_lightm_unet_segmentation"
SLICES = "liver_tumor_ct_lcmambanet_segmentation"  # a 2D network
# What a user may give on the command line, here written into train.json: it all takes a minute.
# For inference it is in the checkpoint, as a training writes it.
SMALL: dict[str, dict[str, Any]] = {
    VOLUMES: {
        "num_classes": 2,
        "learning_rate": 0.01,
        "epoch_length": 1,
        "spacing": [6, 6, 6],
        "patch_size": [32, 32, 16],
        "network_def#init_filters": 8,
        "network_def#blocks_down": [1, 1, 1],
        "network_def#blocks_up": [1, 1],
    },
    SLICES: {"num_classes": 2, "learning_rate": 0.01, "patch_size": [64, 64]},
}
LABELS = {"liver": 1, "tumour": 2}  # of the metadata
PANEL = {"test_time_flips": False, "keep_largest_component": False}
both = pytest.mark.parametrize("model", [VOLUMES, SLICES])


@dataclass
class Server:
    """A server that runs, and the client that 3D Slicer has of it."""

    address: str
    client: MONAILabelClient
    app: Path
    log: Path

    def request(self, path: str, body: bytes | None = None, kind: str = "json") -> bytes:
        """The answer to a GET, or with a body to a POST."""
        headers = {"Content-Type": f"application/{kind}"}
        with urlopen(Request(self.address + path, body, headers), timeout=300) as answer:
            content: bytes = answer.read()
        return content

    def infer(self, model: str, **options: object) -> nib.Nifti1Image:
        form = urlencode({"params": json.dumps(options)}).encode()
        path = f"/infer/{model}?image=ct&output=image"
        mask = gzip.decompress(self.request(path, form, "x-www-form-urlencoded"))
        return nib.Nifti1Image.from_bytes(mask)

    def weights(self, model: str) -> dict[str, torch.Tensor]:
        file = self.app / "model" / model / "models/model.pt"
        state: dict[str, Any] = torch.load(file, weights_only=True)
        weights: dict[str, torch.Tensor] = state.get("model", state)
        return weights

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.5)


def values(mask: nib.Nifti1Image) -> np.ndarray:
    return np.asarray(mask.dataobj)


def add_bundle(name: str, models: Path) -> None:
    """A copy of a bundle with a small network, and weights of it that know nothing."""
    bundle = models / name
    shutil.copytree(REPOSITORY / "bundles" / name, bundle)
    parser, file = ConfigParser(), bundle / "configs/train.json"
    parser.read_config(str(file))
    parser.update(SMALL[name])
    file.write_text(json.dumps(parser.config))
    torch.manual_seed(0)
    network, settings = (parser.get_parsed_content(id_) for id_ in ("network_def", "settings"))
    weights = bundle / "models/model.pt"
    torch.save({"model": network.state_dict(), "settings": settings}, weights)
    # Scoring takes an image for scored where some model had weights of the same second.
    os.utime(weights, (1 + list(SMALL).index(name),) * 2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("monai_label")
    app, studies = root / "app", root / "studies"
    shutil.copytree(Path(sys.prefix) / "monailabel/sample-apps/monaibundle", app)
    studies.mkdir()
    for name in ("ct", "ct_trunk"):
        shutil.copy(shared(f"data/real_ct/{name}.nii.gz"), studies)
    for name in SMALL:
        add_bundle(name, app / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ",".join(SMALL)
    conf = {"models": names, "epistemic_model": names, "zoo_source": "local", "sam2": "false"}
    command = [sys.executable, "-m", "monailabel.main", "start_server"]
    command += ["--app", str(app), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for item in conf.items():
        command += ["--conf", *item]
    environment = {
        "PYTHONPATH": str(REPOSITORY / "tests/cpu_torchvision"),
        "OMP_NUM_THREADS": "2",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    address, log = f"http://127.0.0.1:{port}", root / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Server(address, MONAILabelClient(address, str(root)), app, log)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", port)) == 0

    try:
        running.wait_for(answers, 180)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # and a training that it may have started
        process.wait()


@pytest.mark.parametrize(
    ("model", "dimension", "panel"),
    [(VOLUMES, 3, {"overlap": 0.5, **PANEL}), (SLICES, 2, PANEL)],
)
def test_info_lists_the_model(server: Server, model: str, dimension: int, panel: dict[str, Any]):
    info = server.client.info()
    assert model in info["trainers"]
    assert model in info["scoring"]
    found = info["models"][model]
    assert found["labels"] == LABELS
    assert (found["type"], found["dimension"]) == ("segmentation", dimension)
    own = {"device", "model_filename"}
    assert {k: v for k, v in found["config"].items() if k not in own} == panel


@both
def test_mask_is_on_the_scans_own_grid(server: Server, model: str, record_property):
    start = time.monotonic()
    mask = server.infer(model)
    record_property("seconds", round(time.monotonic() - start, 1))
    record_property("voxels", np.bincount(values(mask).astype(int).ravel()).tolist())
    scan = nib.load(shared("data/real_ct/ct.nii.gz"))
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert set(np.unique(values(mask))) == {0, 1}


def test_overlap_of_the_panel(server: Server):
    def windows(overlap: float) -> int:
        written = len(server.log.read_text())
        server.infer(VOLUMES, overlap=overlap)
        bars: list[str] = re.findall(r"100%\S+ (\d+)/\d+", server.log.read_text()[written:])
        return int(bars[-1])

    assert windows(0.75) > windows(0.5) > windows(0.0) > 1


@both
def test_flips_of_the_panel(server: Server, model: str):
    plain, flipped = server.infer(model), server.infer(model, test_time_flips=True)
    assert not np.array_equal(values(plain), values(flipped))
    assert np.array_equal(values(plain), values(server.infer(model)))  # off again


@both
def test_largest_component_of_the_panel(server: Server, model: str):
    plain, kept = server.infer(model), server.infer(model, keep_largest_component=True)
    everywhere = np.ones((3, 3, 3))
    components, count = ndimage.label(values(plain), everywhere)
    assert count > 1
    largest = 1 + np.bincount(components.ravel())[1:].argmax()
    assert np.array_equal(values(kept) > 0, components == largest)


@both
def test_epistemic_scoring(server: Server, model: str, record_property):
    # With two workers MONAI Label reads one config in two threads, and fails now and then.
    request = b'{"simulation_size": 3, "max_workers": 1}'
    answer = server.request(f"/scoring/{model}?run_sync=true", request)
    record_property("scoring", answer.decode())
    assert json.loads(answer)["executed"] == 2
    image = json.loads(server.request("/datastore/image/info?image=ct"))
    record_property("entropy", image["epistemic_entropy"])
    # Simulations that agree have at most 5e-4 per voxel, which MONAI Label sums over the rows of
    # what it takes for images of a 2D model.
    rows = 1 if model == VOLUMES else nib.load(shared("data/real_ct/ct.nii.gz")).shape[0]
    assert image["epistemic_entropy"] > 2 * 5e-4 * rows


def test_saved_label_is_listed(server: Server):
    label = shared("data/real_ct/liver.nii.gz")
    saved = server.client.save_label("ct", str(label), tag="final", params={})
    assert saved == {"image": "ct", "label": "ct"}
    (case,) = json.loads(server.request("/datastore/?output=train"))
    assert Path(case["image"]).name == Path(case["label"]).name == "ct.nii.gz"
    assert Path(case["label"]).read_bytes() == label.read_bytes()
    assert server.client.info()["datastore"]["completed"] == 1
    assert server.client.next_sample("first", {})["id"] == "ct_trunk"


@both
def test_training_on_the_label_gives_new_weights_and_masks(
    server: Server, model: str, record_property
):
    """One case, which leaves none to validate on: the weights of the last epoch are kept."""
    server.client.save_label("ct", str(shared("data/real_ct/liver.nii.gz")), tag="final", params={})
    weights, mask = server.weights(model), server.infer(model)
    start = time.monotonic()
    server.client.train_start(model, {"max_epochs": 1, "multi_gpu": False})
    over = ("DONE", "ERROR")
    server.wait_for(lambda: server.client.train_status()["status"] in over, 240)
    record_property("seconds", round(time.monotonic() - start, 1))
    status = server.client.train_status()
    assert status["status"] == "DONE", status["details"]
    trained = server.weights(model)
    assert trained.keys() == weights.keys()
    assert any(not torch.equal(trained[name], weights[name]) for name in weights)
    after = values(server.infer(model))
    record_property("voxels", np.bincount(after.astype(int).ravel()).tolist())
    assert not np.array_equal(after, values(mask))
