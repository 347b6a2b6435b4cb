"""A small bundle with weights, and servers on this machine alone."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from common.networks import LightMUNet
from common.zoo import pack

from ..conftest import REPOSITORY

NAME = "lung_cxr_lightm_unet_segmentation"
SIZES = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}


def edit(bundle: Path, config: str, change: Callable[[dict], object]) -> None:
    file = bundle / f"configs/{config}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, indent=4))


def write_weights(bundle: Path, seed: int = 0, settings: dict | None = None) -> None:
    torch.manual_seed(seed)
    network = LightMUNet(spatial_dims=2, in_channels=1, out_channels=2, **SIZES)
    weights = network.state_dict()
    content = {"model": weights, "settings": settings} if settings else weights
    torch.save(content, bundle / "models/model.pt")


def release(bundle: Path, version: str) -> None:
    """Raise the version that a bundle says it has."""
    edit(bundle, "metadata", lambda x: x.update(version=version, changelog={version: "other"}))


def make_bundle(folder: Path) -> Path:
    """The bundle for lungs, with a small network and its weights."""
    copy = folder / NAME
    source = REPOSITORY / "bundles" / NAME
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("eval", "models"))
    (copy / "models").mkdir()
    told = ("weights", "weights_license", "reference_prediction")  # of those that it ships
    edit(copy, "metadata", lambda x: [x.pop(key, None) for key in told])
    edit(copy, "train", lambda x: x["network_def"].update(SIZES))
    for config in ("inference", "evaluate"):
        edit(copy, config, lambda x: x["network_def"]["default"].update(SIZES))
    write_weights(copy)
    return copy


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "work")


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That bundle, packed; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    return pack(make_bundle(folder), folder / "zips").archive


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Serve on 127.0.0.1; the address is without a slash in the end."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        do_POST = do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
