import os
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from fire.parser import DefaultParseValue
from monai.data import MetaTensor

from common.data import AtomicNibabelWriter
from common.errors import InputError
from common.files import as_typed, replace_folder, replacing


def test_complete_or_not_at_all(tmp_path: Path):
    file = tmp_path / "result.txt"
    with replacing(file) as partial:
        partial.write_text("first")
        assert not file.exists()
    assert file.read_text() == "first"

    def interrupted() -> None:
        with replacing(file) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "first"
    assert list(tmp_path.iterdir()) == [file]


def test_nothing_is_written_through_what_lies_there(tmp_path: Path):
    """A stranger who may write in the folder too plants links at names that can be foreseen."""
    outside, file = tmp_path / "outside", tmp_path / "result.txt"
    outside.write_text("precious")
    (tmp_path / f".{os.getpid()}.result.txt").symlink_to(outside)
    with replacing(file) as partial:
        assert partial.name == file.name
        partial.write_text("result")
    assert outside.read_text() == "precious"
    assert file.read_text() == "result"
    assert not file.is_symlink()


def test_links_and_folders_are_not_replaced(tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "folder", "pipe"):
        before = (tmp_path / name).lstat()
        with (
            pytest.raises(FileExistsError, match="only a file is replaced"),
            replacing(tmp_path / name),
        ):
            pytest.fail("it was found only after the work was done")
        assert (tmp_path / name).lstat() == before
    assert len(list(tmp_path.iterdir())) == 5


def test_writer_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(filename: Path) -> None:
        writer = AtomicNibabelWriter(output_dtype=np.uint8)
        image = MetaTensor(torch.ones(1, 4, 5, 6), affine=torch.diag(torch.tensor([1, 2, 3, 1.0])))
        writer.set_data_array(image, channel_dim=0)
        writer.set_metadata(image.meta)
        writer.write(filename)

    file = tmp_path / "mask.nii.gz"
    write(file)
    assert nib.load(file).shape == (4, 5, 6)
    before = file.read_bytes()

    def full_disk(image: object, filename: Path) -> None:
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(InputError, match=r"mask\.nii\.gz cannot be written \(No space"):
        write(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_folder_takes_anothers_place_or_leaves_it(tmp_path: Path):
    new, target = tmp_path / "new", tmp_path / "target"
    for content in ("first", "second"):
        new.mkdir()
        (new / "file").write_text(content)
        replace_folder(new, target)
        assert (target / "file").read_text() == content
        assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileNotFoundError):
        replace_folder(new, target)
    assert (target / "file").read_text() == "second"
    assert list(tmp_path.iterdir()) == [target]


def test_folders_that_cannot_be_put_back_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the new one fails and the old one's place was taken meanwhile."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("precious")
    planted = tmp_path / f".{os.getpid()}.target"
    planted.mkdir()
    (planted / "file").touch()
    new = tmp_path / "new"
    new.mkdir()
    replace_folder(new, target)
    assert list(target.iterdir()) == []
    (target / "file").write_text("precious")
    rename = Path.rename

    def fails(self: Path, other: Path) -> Path:
        if self == new:
            (tmp_path / "target").write_text("another's")
            raise OSError("no space")
        return rename(self, other)

    new.mkdir()
    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="directory"):
        replace_folder(new, target)
    assert target.read_text() == "another's"
    assert [x.read_text() for x in tmp_path.glob(".target*/*/file")] == ["precious"]


@pytest.mark.parametrize(
    "text",
    ["1234", "007", "1e3", "2024_01", "a,b", "data#1", "0x10", "[x]", "True", "'q'", "-5", "a@b"],
)
@pytest.mark.parametrize("form", ["--dataset_dir {}", "--dataset_dir={}", "--dataset-dir {}"])
def test_path_as_it_was_typed(monkeypatch: pytest.MonkeyPatch, text: str, form: str):
    words = form.replace(" ", "\n").format(text).split("\n")
    monkeypatch.setattr(sys, "argv", ["monai", "run", "--dataset_dir", "other", *words, "--x", "1"])
    assert as_typed("dataset_dir", DefaultParseValue(text)) == text


def test_path_that_was_not_typed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["server", "--dataset_dir", "1234", "--checkpoint", "None"])
    assert as_typed("output_dir", "eval") == "eval"
    assert as_typed("dataset_dir", "from elsewhere") == "from elsewhere"
    assert as_typed("checkpoint", None) is None
