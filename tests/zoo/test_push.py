"""Pushing, to a stand-in for the Hub on this machine: what huggingface_hub asks of it, it has."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from common.errors import InputError
from common.zoo import pack, push
from common.zoo.archives import unpack_archive
from common.zoo.push import model_card

from .conftest import NAME, release, serving

REPO = "someone/lungs"
COMMIT = "1" * 40


def address(handler: BaseHTTPRequestHandler) -> str:
    return f"http://{handler.headers['Host']}"


class Hub:
    """One repository: its files, tags, and whether it is private."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: list[str] = []
        self.private: bool | None = None

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        path = handler.path.partition("?")[0].removeprefix("/")
        if handler.headers["Authorization"] != "Bearer secret":
            self.answer(handler, 401, {"error": "no token"})
        elif path == "api/repos/create":
            self.private = json.loads(body)["visibility"] == "private"
            self.answer(handler, 200, {"url": f"{address(handler)}/{REPO}", "id": REPO})
        elif path == "api/validate-yaml":  # of the model card
            self.answer(handler, 200, {"errors": [], "warnings": []})
        elif self.private is None:
            self.answer(handler, 404, {}, {"X-Error-Code": "RepoNotFound"})
        elif path == f"api/models/{REPO}/refs":
            tags = [{"name": x, "ref": f"refs/tags/{x}", "targetCommit": COMMIT} for x in self.tags]
            self.answer(handler, 200, {"branches": [], "converts": [], "tags": tags})
        elif path == f"api/models/{REPO}/preupload/main":
            files = json.loads(body)["files"]
            modes = [
                {"path": x["path"], "uploadMode": "regular", "shouldIgnore": False} for x in files
            ]
            self.answer(handler, 200, {"files": modes})
        elif path == f"api/models/{REPO}/commit/main":
            self.commit([json.loads(line) for line in body.splitlines()])
            url = f"{address(handler)}/{REPO}/commit/{COMMIT}"
            self.answer(handler, 200, {"commitUrl": url, "commitOid": COMMIT})
        elif path.startswith(f"api/models/{REPO}/tag/"):
            self.tags.append(json.loads(body)["tag"])
            self.answer(handler, 200, {})
        elif path.startswith(f"api/models/{REPO}/tree/"):
            self.answer(handler, 200, [self.entry(x) for x in self.files])
        elif path.startswith(f"api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(handler, 200, {"id": REPO, "sha": COMMIT, "siblings": siblings})
        elif (name := path.removeprefix(f"{REPO}/resolve/{COMMIT}/")) in self.files:
            headers = {"ETag": f'"{hash(name)}"', "X-Repo-Commit": COMMIT}
            self.answer(handler, 200, self.files[name], headers)
        else:
            self.answer(handler, 404, {})

    def entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40}

    def commit(self, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            path = operation["value"].get("path")
            if operation["key"] == "file":
                self.files[path] = base64.b64decode(operation["value"]["content"])
            elif operation["key"] == "deletedFile":
                del self.files[path]

    @staticmethod
    def answer(
        handler: BaseHTTPRequestHandler,
        code: int,
        content: Any,
        headers: dict[str, str] | None = None,
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)


def run(
    folder: Path, address: str, *arguments: object, token: str = "secret"
) -> subprocess.CompletedProcess[str]:
    """Python, with the stand-in as its Hub and a home for huggingface_hub in a folder."""
    environment = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HOME": str(folder / "hf")}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"HF_HUB_DISABLE_XET": "1"},
    )


def test_dry_run_lists_files_and_asks_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    upload = push(bundle, REPO)
    assert (upload.repo, upload.version) == (REPO, "0.1.0")
    assert upload.files["models/model.pt"] == (bundle / "models/model.pt").stat().st_size
    assert {"LICENSE", "configs/metadata.json", "common/__init__.py"} < upload.files.keys()
    with pytest.raises(InputError, match=r"repo is 'lungs'; allowed is a repository as owner/name"):
        push(bundle, "lungs")
    (bundle / "models/model.pt").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"no sound bundle: weights: .* cannot be read as a check"):
        push(bundle, REPO)


def test_missing_hub(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["common.zoo.push"], "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "\.\[hub\]" in this'):
        push(bundle, REPO, dry_run=False)


def test_the_cards_links_lead_to_files_of_docs(bundle: Path):
    """The card is a folder higher than the README; what leads elsewhere stays as it is."""
    (bundle / "docs/tables").mkdir()
    (bundle / "docs/tables/one.csv").touch()
    readme = (
        "![Lungs](architecture.png) [who](data_license.txt), [t](tables/one.csv#row)\n"
        "[here](#data) [paper](https://example.org/data_license.txt)\n"
        "[none](missing.png) [out](../../README.md)\n"
    )
    (bundle / "docs/README.md").write_text(readme)
    (bundle / "docs/architecture.png").touch()
    assert model_card(bundle).partition("---\n![")[2] == (
        "Lungs](docs/architecture.png) [who](docs/data_license.txt), [t](docs/tables/one.csv#row)\n"
        "[here](#data) [paper](https://example.org/data_license.txt)\n"
        "[none](missing.png) [out](../../README.md)\n"
    )


@pytest.mark.slow
def test_pushed_bundles_are_on_the_hub_and_back(bundle: Path, tmp_path: Path):
    hub = Hub()
    command = ["common", "zoo", "push", bundle, "--repo", REPO]
    upload = [*command, "--dry_run", "False"]
    with serving(hub) as address:
        done = run(tmp_path, address, *command)
        assert done.returncode == 0, done.stderr
        assert "would be uploaded to someone/lungs, version 0.1.0" in done.stdout
        done = run(tmp_path, address, *upload, token="wrong")
        assert done.returncode == 1
        assert done.stderr.startswith("error: someone/lungs cannot be uploaded to (Client error '4")
        assert done.stderr.count("\n") == 1
        assert hub.private is None

        done = run(tmp_path, address, *upload)
        assert done.returncode == 0, done.stderr
        assert (hub.private, hub.tags) == (True, ["0.1.0"])
        card = hub.files["README.md"].decode()
        assert "library_name: monai\nlicense: apache-2.0\n---\n# Lung segmentation" in card
        done = run(tmp_path, address, *upload)
        assert "has version 0.1.0 already" in done.stderr

        release(bundle, "0.2.0")
        hub.files["common/of_an_earlier_version.py"] = b""
        done = run(tmp_path, address, *upload)
        assert done.returncode == 0, done.stderr
        assert hub.tags == ["0.1.0", "0.2.0"]
        local = unpack_archive(pack(bundle, tmp_path).archive, tmp_path / "local")
        expected = {str(x.relative_to(local)): x for x in local.rglob("*") if x.is_file()}
        assert hub.files.keys() == expected.keys() | {"README.md"}
        assert all(hub.files[name] == file.read_bytes() for name, file in expected.items())

        place = ["--repo", REPO, "--name", NAME, "--bundle_dir", tmp_path / "back"]
        source = ["download", "--source", "huggingface_hub", "--version", "0.2.0", *place]
        done = run(tmp_path, address, "monai.bundle", *source)
        assert done.returncode == 0, done.stdout + done.stderr
        for name, content in hub.files.items():
            assert (tmp_path / "back" / NAME / name).read_bytes() == content
