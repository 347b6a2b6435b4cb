from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from email.message import Message
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.request import Request
from urllib.response import addinfourl

import pytest

from common.cli import main
from common.errors import InputError
from common.zoo import install, pack
from common.zoo.archives import sha256
from common.zoo.download import open_partial

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


def by_name(*files: Path) -> Callable[[BaseHTTPRequestHandler], None]:
    """A server of files as they are when they are asked for."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (file,) = (file for file in files if handler.path == f"/{file.name}")
        Server(file)(handler)

    return answer


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

    with serving(by_name(index, packed, newer)) as address:
        index_of(tmp_path, newer, source=lambda x: f"{address}/{x.name}")
        install(NAME, index=f"{address}/index.json", output=tmp_path / "by_http")
    index_of(tmp_path, packed, newer)
    index.write_text(index.read_text().replace(sha256(newer), sha256(newer).upper()))
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
        (
            lambda old, new: zip_of(new, f"{NAME}/models/MODEL.PT"),
            r"MODEL\.PT cannot be read as a checkpoint",
        ),
        (
            lambda old, new: zip_of(new, f"{NAME}/models/a/b.Pkl"),
            r"b\.Pkl cannot be read as a checkpoint",
        ),
        (lambda old, new: shutil.copy(old, new), r"has version 0\.1\.0; needed is 0\.2\.0"),
        (lambda old, new: new.write_bytes(b"no archive"), "cannot be read as a zip file"),
    ],
    ids=[
        *("parent", "absolute", "link", "other folder", "pickle", "other case", "other name"),
        *("version", "no zip"),
    ],
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


def part_of(packed: Path, output: Path) -> Path:
    output.mkdir()
    return output / f".{packed.name}.part"


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
def test_downloads_are_not_written_through_links(packed: Path, tmp_path: Path, kind: str):
    victim, index = tmp_path / "victim", index_of(tmp_path, packed)
    part, there = part_of(packed, tmp_path / "out"), kind != "dangling"
    if there:
        victim.write_text("precious")
    (os.link if kind == "hard" else os.symlink)(victim, part)
    with pytest.raises(InputError, match=r"zip\.part is no download of yours; remove it"):
        install(NAME, index=index, output=tmp_path / "out")
    assert victim.exists() == there
    assert not there or victim.read_text() == "precious"
    assert os.path.lexists(part)


def test_downloads_do_not_go_on_in_what_others_may_write(packed: Path, tmp_path: Path):
    part = part_of(packed, tmp_path / "out")
    index = index_of(tmp_path, packed)
    shutil.copy(packed, part)
    part.chmod(0o666)
    with pytest.raises(InputError, match="is no download of yours"):
        install(NAME, index=index, output=tmp_path / "out")
    part.unlink()
    os.mkfifo(part)
    with pytest.raises(InputError, match="is no download of yours"):
        install(NAME, index=index, output=tmp_path / "out")


def test_what_was_hashed_is_what_is_unpacked(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where a stranger who may write in the folder puts another archive in the download's place."""
    index, output = index_of(tmp_path, packed), tmp_path / "out"
    evil = repacked(packed, tmp_path / "evil.zip", lambda name, x: x.replace(b"lung", b"evil"))
    hashes = sys.modules["common.zoo.install"].sha256
    modes = []

    def swapping(file: object) -> str:
        digest = hashes(file)
        for part in output.glob(".*.part"):
            modes.append(part.stat().st_mode & 0o777)
            shutil.copy(evil, tmp_path / "copy")
            (tmp_path / "copy").replace(part)
        return digest

    monkeypatch.setattr(sys.modules["common.zoo.install"], "sha256", swapping)
    folder = install(NAME, index=index, output=output)
    assert b"evil" not in (folder / "docs/README.md").read_bytes()
    assert modes[0] == 0o600
    assert [x.name for x in output.iterdir()] == [NAME]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["file", "link to a file", "link to a folder", "dangling link"])
def test_what_is_no_folder_is_not_displaced(
    packed: Path, tmp_path: Path, kind: str, overwrite: bool
):
    index, target = index_of(tmp_path, packed), tmp_path / "out" / NAME
    (tmp_path / "out").mkdir()
    (tmp_path / "a folder").mkdir()
    if kind == "file":
        target.write_text("precious")
    else:
        (tmp_path / "a file").write_text("precious")
        target.symlink_to(tmp_path / kind.removeprefix("link to "))
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"{NAME} is a (file|link); allowed is a folder"):
        install(NAME, index=index, output=tmp_path / "out", overwrite=overwrite)
    assert tree(tmp_path) == before
    assert target.is_symlink() == (kind != "file")
    assert list((tmp_path / "a folder").iterdir()) == []
    assert not (tmp_path / "dangling link").exists()


def test_links_of_the_user_are_not_lost(packed: Path, tmp_path: Path):
    index, output = index_of(tmp_path, packed), tmp_path / "out"
    folder = install(NAME, index=index, output=output)
    (folder / "data").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"has 1 files that were not .*such as data;"):
        install(NAME, index=index, output=output)
    (folder / "data").unlink()
    (folder / "models/model.pt").rename(tmp_path / "model.pt")
    (folder / "models/model.pt").symlink_to(tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"has 1 files that were not .*such as models/model\.pt;"):
        install(NAME, index=index, output=output)
    shutil.rmtree(folder)
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "__pycache__/thesis.odt").touch()
    with pytest.raises(InputError, match=r"such as __pycache__/thesis\.odt"):
        install(NAME, index=index, output=output)
    install(NAME, index=index, output=output, overwrite=True)
    (folder / ".installed.sha256").write_bytes(b"\xff")
    with pytest.raises(InputError, match="were not installed or have changed"):
        install(NAME, index=index, output=output)


def test_files_that_come_while_it_downloads_are_not_lost(packed: Path, tmp_path: Path):
    output = tmp_path / "out"
    folder = install(NAME, index=index_of(tmp_path, packed), output=output)
    server = Server(packed)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        (folder / "notes.txt").write_text("precious")
        server(handler)

    with serving(answer) as address:
        index = index_of(tmp_path, packed, source=lambda x: f"{address}/{x.name}")
        with pytest.raises(InputError, match=r"has 1 files that were not .*such as notes\.txt"):
            install(NAME, index=index, output=output)
    assert (folder / "notes.txt").read_text() == "precious"


def test_records_are_nobody_elses(packed: Path, tmp_path: Path):
    """An archive with a record of its own does not say what was installed."""
    archive = tmp_path / packed.name
    shutil.copy(packed, archive)
    with zipfile.ZipFile(archive, "a") as content:
        content.writestr(f"{NAME}/.installed.sha256", "forged")
    folder = install(NAME, index=index_of(tmp_path, archive), output=tmp_path / "out")
    command = ["sha256sum", "--check", "--strict", "--quiet", ".installed.sha256"]
    assert subprocess.run(command, cwd=folder).returncode == 0


def test_downloaded_indices(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Plain http is warned of once; no file of this machine is named from afar."""
    index, output = index_of(tmp_path, packed), tmp_path / "out"

    with serving(by_name(index, packed)) as address:
        with pytest.raises(InputError, match=r"has the source file:.*; allowed in a downloaded"):
            install(NAME, index=f"{address}/index.json", output=output)
        assert [record.getMessage() for record in caplog.records] == [
            f"{address}/index.json came over http, so that it and the checksums in it may have "
            "been changed on the way: use https."
        ]
        assert not output.exists()
        caplog.clear()
        index_of(tmp_path, packed, source=lambda x: f"{address}/{x.name}")
        install(NAME, index=f"{address}/index.json", output=output)
        assert len(caplog.records) == 1
        caplog.clear()
        install(NAME, index=index, output=output)
        assert not caplog.records


def test_addresses_that_an_index_leads_to(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """From https to plain http, which is warned of too, or to what is not allowed."""
    content = index_of(tmp_path, packed, source=lambda x: f"https://127.0.0.1:9/{x.name}")
    url = "http://example.org/index.json"

    def answer(request: Request, timeout: float) -> addinfourl:
        if "9/" in request.full_url:
            raise OSError("no network")
        return addinfourl(content.open("rb"), Message(), url)

    monkeypatch.setattr(sys.modules["common.zoo.download"], "urlopen", answer)
    with pytest.raises(InputError, match=r"cannot be downloaded \(no network\)"):
        install(NAME, index="https://example.org/index.json", output=tmp_path / "out")
    assert "came over http" in caplog.text
    url = "ftp://example.org/index.json"
    with pytest.raises(InputError, match=r"leads to the address 'ftp://.*'; allowed are http,"):
        install(NAME, index="https://example.org/index.json", output=tmp_path / "out")


def test_one_process_at_a_time_downloads_to_a_file(packed: Path, tmp_path: Path):
    """Another that begins from the start would take away what this one has verified."""
    part, index = part_of(packed, tmp_path / "out"), index_of(tmp_path, packed)
    with open_partial(part):
        with pytest.raises(InputError, match=r"Another process downloads to .*\.part; wait"):
            install(NAME, index=index, output=tmp_path / "out")
        assert part.exists()
    install(NAME, index=index, output=tmp_path / "out")


def test_downloads_that_do_not_end(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules["common.zoo.download"], "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="is longer than 1000 bytes; no bundle is"):
        install(NAME, index=index_of(tmp_path, packed), output=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


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
    assert "allowed are SHA-256" in refused(packed.as_uri(), "g" * 64)
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
    assert done.splitlines()[-1] == "passed  reference"
    done = zoo("pack", output / NAME, "--output", tmp_path / "again")
    archive = tmp_path / "again" / packed.name
    Path(f"{archive}.sha256").unlink()
    assert zoo("verify", archive).splitlines()[:2] == ["no checksum beside it", "passed  archive"]
    left_out = "left out: .installed.sha256"
    assert done.splitlines() == [f"{archive}, and .sha256 beside it", left_out]
    assert archive.read_bytes() == packed.read_bytes()
    (output / NAME / "LICENSE").unlink()
    with pytest.raises(SystemExit, match=f"error: {output / NAME} fails 1 of 13 checks"):
        zoo("verify", output / NAME)
    assert "failed  name_and_files: LICENSE is missing\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is no sound bundle: name_and_files: LICENSE is missing"):
        zoo("pack", output / NAME, "--output", tmp_path / "again")
    with pytest.raises(SystemExit, match="No bundle is named"):
        zoo("pack", "--output", tmp_path / "again")
