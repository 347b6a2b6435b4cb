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
        (entry("top/FILE/below"), "twice"),
        (entry("top/file/below"), "twice"),
        (entry("top/common/A.PYC"), "compiled code"),
        (entry("top/common/a.SO"), "compiled code"),
        (entry("top/a.dylib"), "compiled code"),
        (entry("top/a.DLL"), "compiled code"),
        (entry("top/a.egg"), "compiled code"),
        (entry("top/CON"), "Windows"),
        (entry("top/nul.txt"), "Windows"),
        (entry("top/Aux.tar.gz"), "Windows"),
        (entry("top/NUL .txt"), "Windows"),
        (entry("top/com1/a"), "Windows"),
        (entry("top/LPT¹.log"), "Windows"),
        (entry("top/conout$"), "Windows"),
        (entry("top/a."), "Windows"),
        (entry("top/a "), "Windows"),
        (entry("top/docs./a"), "Windows"),
        (entry("top/what?"), "Windows"),
        (entry("top/a\nb"), "Windows"),
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


def test_names_like_devices_and_others_alphabets_are_allowed(tmp_path: Path):
    names = ["console", "com", "com10", "auxiliary.txt", "a.con", ".gitkeep", "Lungenlappen-é"]
    (tmp_path / "file").touch()
    write_archive(tmp_path / "a.zip", {f"top/{name}": tmp_path / "file" for name in names})
    folder = unpack_archive(tmp_path / "a.zip", tmp_path)
    assert sorted(x.name for x in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize(("one", "other"), [("docs/a", "Docs/b"), ("é", "e\u0301")])
def test_names_that_are_one_on_some_systems(tmp_path: Path, one: str, other: str):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(f"top/{one}", "")
        content.writestr(f"top/{other}", "")
    with pytest.raises(InputError, match="twice"):
        check_archive(archive)


@pytest.mark.parametrize("name", ["top/aux.md", "top/a:b", "top/FILE", "top/a.so", "../a"])
def test_what_could_not_be_unpacked_is_not_packed(tmp_path: Path, name: str):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="has the member"):
        write_archive(tmp_path / "a.zip", dict.fromkeys(("top/file", name), tmp_path / "file"))
    assert not (tmp_path / "a.zip").exists()


def test_what_is_open_is_unpacked_whatever_has_its_name(tmp_path: Path):
    (tmp_path / "file").write_text("right")
    digest = write_archive(tmp_path / "a.zip", {"top/file": tmp_path / "file"})
    (tmp_path / "file").write_text("wrong")
    write_archive(tmp_path / "b.zip", {"top/file": tmp_path / "file"})
    with (tmp_path / "a.zip").open("rb") as file:
        assert sha256(file) == digest
        (tmp_path / "b.zip").replace(tmp_path / "a.zip")
        assert (unpack_archive(file, tmp_path / "out") / "file").read_text() == "right"
        assert sha256(file) == digest != sha256(tmp_path / "a.zip")


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
    write_archive(archive, {"top/é": tmp_path / "file"})
    archive.write_bytes(archive.read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(InputError, match=r"cannot be read as a zip file .*'utf-8' codec"):
        check_archive(archive)
    with zipfile.ZipFile(archive, "w"):
        pass
    with pytest.raises(InputError, match="has the folders none"):
        check_archive(archive)
