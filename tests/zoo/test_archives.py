import os
import stat
import zipfile
from pathlib import Path

import pytest

from common.errors import InputError
from common.zoo import archives
from common.zoo.archives import check_archive, sha256, unpack_archive, write_archive


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    for name, order, mask, time in (("a", "xy", 0o077, 1e9), ("b", "yx", 0o002, 1.5e9)):
        before = os.umask(mask)
        try:
            (tmp_path / name).mkdir()
            for file in order:
                (tmp_path / name / file).write_text(f"content of {file}")
                os.utime(tmp_path / name / file, (time, time))
            members = {f"top/{file}": tmp_path / name / file for file in order}
            write_archive(tmp_path / f"{name}.zip", members)
        finally:
            os.umask(before)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert sha256(tmp_path / "a.zip") == sha256(tmp_path / "b.zip")
    folder = unpack_archive(tmp_path / "a.zip", tmp_path / "out")
    assert folder == tmp_path / "out/top"
    assert (folder / "x").read_text() == "content of x"


def entry(name: str, kind: int = 0, permissions: int = 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = (kind | permissions) << 16
    return made


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (entry("../evil"), "may lead outside"),
        (entry("top/../../evil"), "may lead outside"),
        (entry("top/./evil"), "may lead outside"),
        (entry("top//evil"), "may lead outside"),
        (entry("/evil"), "absolute path"),
        (entry("C:/evil"), "absolute path"),
        (entry("top\\..\\..\\evil"), "absolute path or one of another system"),
        (entry("top/link", stat.S_IFLNK), "a link or a device"),
        (entry("top/pipe", stat.S_IFIFO), "a link or a device"),
        (entry("top/device", stat.S_IFCHR), "a link or a device"),
        (entry("top/common/__pycache__/a.pyc"), "compiled code"),
        (entry("other/file"), "has the folders other, top"),
        (entry("file"), "beside its folder"),
        (entry("top/fILE"), "twice"),
    ],
    ids=lambda x: x.filename if isinstance(x, zipfile.ZipInfo) else "",
)
def test_members_that_could_do_harm(tmp_path: Path, member: zipfile.ZipInfo, reason: str):
    (tmp_path / "outside").mkdir()
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("top/file", "harmless")
        content.writestr(member, "../../outside/evil")
    with pytest.raises(InputError, match=reason):
        unpack_archive(archive, tmp_path / "in/here")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "outside"]


def test_archives_that_grow_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("top/zeros", bytes(10 << 20))
    with pytest.raises(InputError, match="would unpack to 10485760 bytes in 1 files"):
        check_archive(archive)
    with zipfile.ZipFile(archive, "w") as content:
        for index in range(5):
            content.writestr(f"top/{index}", "")
    assert check_archive(archive) == "top"
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 4)
    with pytest.raises(InputError, match="in 5 files"):
        check_archive(archive)


def test_damaged_archives(tmp_path: Path):
    archive = tmp_path / "a.zip"
    (tmp_path / "file").write_text("content")
    write_archive(archive, {"top/file": tmp_path / "file"})
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="cannot be read as a zip file"):
        check_archive(archive)
    archive.write_bytes(whole.replace(b"content", b"CONTENT"))
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack_archive(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(InputError, match="has the folders none"):
        check_archive(archive)
