from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from common.__main__ import main
from common.errors import InputError
from common.zoo import install, pack
from common.zoo.archives import sha256

from .conftest import NAME, release, serving, write_weights
from .test_archives import entry
from .test_verify import Malicious, repacked


def index_of(folder: Path, *archives: Path, source: Callable[[Path], str] = Path.as_uri) -> Path:
    """An index of archives that are named <name>_v<version>.zip."""
    content = {x.stem: {"checksum": sha256(x), "source": source(x)} for x in archives}
    (folder / "index.json").write_text(json.dumps(content))
    return folder / "index.json"


def tree(folder: Path) -> dict[str, str]:
    return {str(x.relative_to(folder)): sha256(x) for x in folder.rglob("*") if x.is_file()}


class Server:
    """A server of one archive."""

    def __init__(self, archive: Path, ranges: bool = True, cut: int | None = None) -> None:
        self.content, self.ranges, self.cut = archive.read_bytes(), ranges, cut
        self.asked: list[str | None] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers["Range"]
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if start >= len(self.content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            end = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : self.cut])


def test_newest_version_by_file_and_by_http(packed: Path, bundle: Path, tmp_path: Path):
    release(bundle, "0.2.0")
    newer = pack(bundle, tmp_path).archive
    index = index_of(tmp_path, packed, newer)
    for where in (index, index.as_uri()):
        folder = install(NAME, index=where, output=tmp_path / "by_file")
        assert folder == tmp_path / "by_file" / NAME
        assert json.loads((folder / "configs/metadata.json").read_text())["version"] == "0.2.0"
    folder = install(NAME, version="0.1.0", index=index, output=tmp_path / "by_file")
    assert json.loads((folder / "configs/metadata.json").read_text())["version"] == "0.1.0"
    assert [x.name for x in (tmp_path / "by_file").iterdir()] == [NAME]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if handler.path == "/index.json":
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(index.read_bytes())
        else:
            Server(tmp_path / handler.path[1:])(handler)

    with serving(answer) as address:
        index_of(tmp_path, newer, source=lambda x: f"{address}/{x.name}")
        install(NAME, index=f"{address}/index.json", output=tmp_path / "by_http")
    index_of(tmp_path, packed, newer)
    install(NAME, index=index, output=tmp_path / "by_file")
    assert tree(tmp_path / "by_http") == tree(tmp_path / "by_file")


def test_record_is_sha256sums(packed: Path, tmp_path: Path):
    folder = install(NAME, index=index_of(tmp_path, packed), output=tmp_path / "out")
    command = ["sha256sum", "--check", "--strict", ".installed.sha256"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "models/model.pt: OK" in done.stdout


@pytest.mark.parametrize("ranges", [True, False])
def test_truncated_downloads_go_on(packed: Path, tmp_path: Path, ranges: bool):
    server, output = Server(packed, ranges, cut=100_000), tmp_path / "out"
    with serving(server) as address:
        index = index_of(tmp_path, packed, source=lambda x: f"{address}/{x.name}")
        size = packed.stat().st_size
        with pytest.raises(InputError, match=rf"ended after 100000 of {size} bytes; try again"):
            install(NAME, index=index, output=output)
        assert not (output / NAME).exists()
        server.cut = None
        install(NAME, index=index, output=output)
        assert server.asked == [None, "bytes=100000-"]
        assert [x.name for x in output.iterdir()] == [NAME]

        part = output / f".{NAME}_v0.1.0.zip.part"  # broke off between download and unpacking
        shutil.copy(packed, part)
        install(NAME, index=index, output=output)
        assert server.asked[2:] == [f"bytes={size}-"]
        part.write_bytes(b"of another archive")
        with (
            pytest.raises(InputError, match="is damaged or was changed")
            if ranges
            else nullcontext()
        ):
            install(NAME, index=index, output=output)
        assert [x.name for x in output.iterdir()] == [NAME]


def zip_of(file: Path, *members: zipfile.ZipInfo | str) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{NAME}/configs/metadata.json", '{"version": "0.2.0"}')
        for member in members:
            archive.writestr(member, "../evil")


def with_weights(weights: bytes) -> Callable[[Path, Path], object]:
    return lambda old, new: repacked(
        old,
        new,
        lambda name, x: (
            weights
            if name == "models/model.pt"
            else x.replace(b'"version": "0.1.0"', b'"version": "0.2.0"')
        ),
    )


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda old, new: zip_of(new, "../evil"), "may lead outside the folder"),
        (lambda old, new: zip_of(new, "/evil"), "an absolute path"),
        (lambda old, new: zip_of(new, entry(f"{NAME}/a", 0o120000)), "a link or a device"),
        (lambda old, new: zip_of(new, "other/evil"), "allowed is one, with the bundle's name"),
        (with_weights(pickle.dumps(Malicious(Path("evil")))), "cannot be read as a checkpoint"),
        (lambda old, new: shutil.copy(old, new), r"has version 0\.1\.0; needed is 0\.2\.0"),
        (lambda old, new: new.write_bytes(b"no archive"), "cannot be read as a zip file"),
    ],
    ids=["parent", "absolute", "link", "other folder", "pickle", "version", "no zip"],
)
def test_harmful_archives_leave_the_old_version(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path], object],
    reason: str,
):
    """Also where an index says that they are as they should be."""
    newer, output = tmp_path / f"{NAME}_v0.2.0.zip", tmp_path / "out"
    make(packed, newer)
    install(NAME, index=index_of(tmp_path, packed), output=output)
    index = index_of(tmp_path, packed, newer)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        install(NAME, index=index, output=output)
    assert tree(tmp_path) == before
    assert [x.name for x in output.iterdir()] == [NAME]


def test_other_archives_than_the_indexs_are_not_unpacked(packed: Path, tmp_path: Path):
    output, archive = tmp_path / "out", tmp_path / packed.name
    shutil.copy(packed, archive)
    index = index_of(tmp_path, archive)
    install(NAME, index=index, output=output)
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"has SHA-256 {sha256(archive)}, and the index says"):
        install(NAME, index=index, output=output)
    assert tree(tmp_path) == before


def test_files_of_the_user_are_not_lost(packed: Path, tmp_path: Path):
    index, output = index_of(tmp_path, packed), tmp_path / "out"
    folder = install(NAME, index=index, output=output)
    (folder / "common/__pycache__").mkdir()
    (folder / "common/__pycache__/errors.pyc").touch()
    install(NAME, index=index, output=output)  # what Python leaves there is nobody's
    write_weights(folder, seed=1)
    (folder / "eval").mkdir()
    (folder / "eval/mask.png").touch()
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"has 2 files that were not .*such as eval/mask\.png"):
        install(NAME, index=index, output=output)
    assert tree(tmp_path) == before
    install(NAME, index=index, output=output, overwrite=True)
    assert not (folder / "eval").exists()
    (folder / ".installed.sha256").unlink()  # as in a folder that something else unpacked
    with pytest.raises(InputError, match="were not installed or have changed"):
        install(NAME, index=index, output=output)


def test_unusable_indices_and_sources(packed: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"There is no index .*none\.json; --index names one"):
        install(NAME, index=tmp_path / "none.json", output=tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        install(NAME, index=(tmp_path / "none.json").as_uri(), output=tmp_path)
    index = tmp_path / "index.json"

    def refused(source: str, checksum: str | None) -> str:
        content = {"source": source} | ({} if checksum is None else {"checksum": checksum})
        index.write_text(json.dumps({f"{NAME}_v0.1.0": content}))
        with pytest.raises(InputError) as error:
            install(NAME, index=index, output=tmp_path / "out")
        return str(error.value)

    assert "is not released" in refused(f"bundles/{NAME}", None)
    assert "allowed are SHA-256" in refused(packed.as_uri(), "da39a3ee")
    assert "allowed are http, https and file" in refused("ftp://localhost/a.zip", "0" * 64)
    assert "cannot be downloaded" in refused((tmp_path / "none.zip").as_uri(), "0" * 64)
    with serving(lambda handler: handler.send_error(404)) as address:
        assert "404" in refused(f"{address}/a.zip", "0" * 64)
    assert list((tmp_path / "out").iterdir()) == []


def test_command_line(
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """From packed bundles to an installed one that passes, and sentences where it does not."""

    def zoo(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["common", "zoo", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    monkeypatch.setattr(logging, "disable", lambda level: None)
    index, output = tmp_path / "index.json", tmp_path / "out"
    place = ["--base_url", packed.parent.as_uri(), "--output", index]
    done = zoo("index", "--zips", packed.parent, *place)
    assert done == f"1 versions are in {index}\n"
    done = zoo("install", NAME, "--index", index, "--output", output)
    assert done == f"{NAME} is in {output / NAME}\n"
    done = zoo("verify", output / NAME)
    assert done.splitlines()[-1] == "passed  network"
    done = zoo("pack", output / NAME, "--output", tmp_path / "again")
    archive = tmp_path / "again" / packed.name
    left_out = "left out: .installed.sha256"
    assert done.splitlines() == [f"{archive}, and .sha256 beside it", left_out]
    assert archive.read_bytes() == packed.read_bytes()
    (output / NAME / "LICENSE").unlink()
    with pytest.raises(SystemExit, match=f"error: {output / NAME} fails 1 of 11 checks"):
        zoo("verify", output / NAME)
    assert "failed  name_and_files: LICENSE is missing\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is no sound bundle: name_and_files: LICENSE is missing"):
        zoo("pack", output / NAME, "--output", tmp_path / "again")
    with pytest.raises(SystemExit, match="No bundle is named"):
        zoo("pack", "--output", tmp_path / "again")
