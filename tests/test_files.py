from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.data import AtomicNibabelWriter
from common.files import replace_folder, replacing


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
    with pytest.raises(OSError, match="No space"):
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
