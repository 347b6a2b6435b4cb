import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from monai.bundle import load

from common.data.phantom import write_phantom
from common.errors import InputError
from common.zoo import pack, push
from common.zoo.archives import unpack_archive

from ..conftest import REPOSITORY
from ..running import succeed
from .conftest import NAME, edit, serving


def test_archive_has_the_bundle_and_common_and_nothing_else(bundle: Path, tmp_path: Path):
    for private in ("data/patient.nii.gz", "eval/patient_seg.png", "models/earlier.pt"):
        (bundle / private).parent.mkdir(exist_ok=True)
        shutil.copy(bundle / "models/model.pt", bundle / private)
    (bundle / "docs/.hidden").touch()
    (bundle / ".pytest_cache").mkdir()
    (bundle / "models/settings.json").write_text('{"image_size": [64, 64]}')
    archive, left_out = pack(bundle, tmp_path / "zips")
    assert archive == tmp_path / f"zips/{NAME}_v0.1.0.zip"
    assert left_out == [".pytest_cache", "data", "eval", "models/earlier.pt"]
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        assert content.read(f"{NAME}/models/model.pt") == (bundle / "models/model.pt").read_bytes()
    listed = subprocess.run(
        ["git", "ls-files", "common"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    own = [name.removeprefix(f"{NAME}/") for name in names if f"{NAME}/common/" not in name]
    networks = REPOSITORY / f"bundles/{NAME}/configs/networks"
    assert own == [
        "LICENSE",
        *(f"configs/as_{name}.json" for name in ("in_the_paper", "shipped")),
        *(f"configs/{name}.json" for name in ("evaluate", "inference")),
        "configs/logging.conf",
        *(f"configs/{name}.json" for name in ("metadata", "multi_gpu_train")),
        *(f"configs/networks/{file.name}" for file in sorted(networks.glob("*.json"))),
        "configs/train.json",
        *(f"docs/{file.name}" for file in sorted((networks.parents[1] / "docs").iterdir())),
        "models/model.pt",
        "models/settings.json",
    ]
    assert {name for name in listed.stdout.split() if (REPOSITORY / name).is_file()} <= {
        name.removeprefix(f"{NAME}/") for name in names
    }
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert Path(f"{archive}.sha256").read_text() == f"{checksum}  {archive.name}\n"
    shutil.rmtree(bundle / "data")
    os.utime(bundle / "LICENSE", (0, 0))
    (bundle / "LICENSE").chmod(0o600)
    again = pack(bundle, tmp_path / "again").archive
    assert again.read_bytes() == archive.read_bytes()


def test_unsound_bundles_are_not_packed(bundle: Path, tmp_path: Path):
    weights = bundle / "models/model.pt"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    edit(bundle, "metadata", lambda x: x.update(weights={"models/model.pt": digest}))
    pack(bundle, tmp_path / "zips")
    weights.unlink()
    with pytest.raises(InputError, match=r"model\.pt is missing, and metadata\.json says"):
        pack(bundle, tmp_path / "none")
    weights.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"no sound bundle: weights: .* the metadata says"):
        pack(bundle, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_is_not_filled_in_is_not_packed(bundle: Path, tmp_path: Path):
    page = bundle / "docs/README.md"
    number = len(page.read_text().splitlines()) + 1
    with page.open("a") as file:
        file.write("**FILL IN:** where it fails\n")
    with pytest.raises(InputError, match=rf"not finished: docs/README\.md:{number} has FILL IN"):
        pack(bundle, tmp_path / "zips")
    assert not (tmp_path / "zips").exists()


@pytest.mark.parametrize(
    "name",
    [
        "LICENSE",
        "configs",
        "configs/train.json",
        "configs/logging.conf",
        "configs/networks",
        "configs/networks/unetr.json",
        "docs",
        "docs/README.md",
        "docs/new",
        "models",
        "models/model.pt",
    ],
)
def test_links_are_not_packed(bundle: Path, tmp_path: Path, name: str):
    """They would bring in what is outside of the bundle: a stranger's may mean to."""
    place, outside = bundle / name, tmp_path / "outside"
    if place.exists():
        place.rename(outside)
    else:
        outside.mkdir()
    place.symlink_to(outside)
    for refuse in (lambda: pack(bundle, tmp_path / "zips"), lambda: push(bundle, "someone/lungs")):
        with pytest.raises(InputError, match=rf"{name} is a link, to .*outside; allowed are files"):
            refuse()
    if place.name == "model.pt":
        outside.unlink()
        with pytest.raises(InputError, match=r"model\.pt is a link"):
            pack(bundle, tmp_path / "zips")
    assert not (tmp_path / "zips").exists()


def test_what_is_packed_is_what_is_verified(bundle: Path, tmp_path: Path):
    """What stays out may be as it likes: exports beside the weights, data behind a link, code."""
    expected = pack(bundle, tmp_path / "zips")
    (bundle / "models/model.ts").write_bytes(b"TorchScript")
    (bundle / "notebook.py").touch()
    (bundle / "data").symlink_to(tmp_path)
    archive, left_out = pack(bundle, tmp_path / "again")
    assert left_out == ["data", "notebook.py", "models/model.ts"]
    assert archive.read_bytes() == expected.archive.read_bytes()
    (bundle / "docs/example.py").touch()
    with pytest.raises(InputError, match=rf"{NAME} is no sound bundle: code: docs/example\.py is"):
        pack(bundle, tmp_path / "again")


@pytest.mark.parametrize("name", [f"{NAME}_v0.1.0.zip", f"{NAME}_v0.1.0.zip.sha256"])
def test_links_and_folders_are_not_replaced(bundle: Path, tmp_path: Path, name: str):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / name).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match=r"cannot be packed in .*only a file is replaced"):
        pack(bundle, tmp_path / "zips")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "zips" / name).is_symlink()


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the packages that are installed but for this one.

    It is installed as a link to the repository, in a .pth file, which -S leaves out.
    """
    path = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    program = f"import sys, runpy; sys.path += {path}; sys.argv = sys.argv[1:]; "
    program += "import common.errors as e; print('common is', e.__file__, file=sys.stderr); "
    program += "runpy.run_module('monai.bundle', run_name='__main__')"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-S", "-W", "ignore", "-c", program, "monai.bundle", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "2"},
    )


@pytest.mark.slow
def test_unpacked_bundle_runs_without_the_collection(packed: Path, tmp_path: Path):
    image = write_phantom(tmp_path / "data", cases=1, kind="cxr", size=96)
    image = next(image.rglob("CXR_png/*.png"))
    missing = python(tmp_path, "run")
    assert "No module named 'common'" in missing.stderr
    root = unpack_archive(packed, tmp_path / "elsewhere")
    options = ["--dataset_dir", str(image), "--image_size", "[32,32]", "--device", "cpu"]
    done = python(root, "run", "--config_file", "configs/inference.json", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"common is {root}/common/errors.py" in done.stderr
    assert [file.name for file in (root / "eval").iterdir()] == [f"{image.stem}_seg.png"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_monai_downloads_and_loads(packed: Path, tmp_path: Path, scheme: str):
    def answer(handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(packed.stat().st_size))
        handler.end_headers()
        handler.wfile.write(packed.read_bytes())

    with serving(answer) as address:
        url = packed.as_uri() if scheme == "file" else f"{address}/{packed.name}"
        place = ["--name", NAME, "--bundle_dir", str(tmp_path / "command")]
        succeed(["download", *place, "--url", url], cwd=tmp_path)
        for folder in ("command", "call"):  # the second is not there yet
            network = load(NAME, bundle_dir=tmp_path / folder, args_file={"url": url}, device="cpu")
            weights = torch.load(tmp_path / folder / NAME / "models/model.pt", weights_only=True)
            found = network.state_dict()
            assert type(network).__name__ == "LightMUNet"
            assert found.keys() == weights.keys()
            assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.slow
def test_two_clones_give_one_checksum(tmp_path: Path):
    checksums = []
    for clone, mask, locale in (("a", 0o077, "C"), ("b", 0o002, "C.UTF-8")):
        folder = tmp_path / clone
        subprocess.run(
            ["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True, umask=mask
        )
        subprocess.run(
            [sys.executable, "-m", "common", "zoo", "pack", NAME, "--output", "zips"],
            cwd=folder,
            check=True,
            umask=mask,
            # Without a compiler, as compiling takes longer than the PyTorch that is used instead.
            env=os.environ | {"PYTHONPATH": str(folder), "LC_ALL": locale, "CXX": "false"},
        )
        checksums.append((folder / f"zips/{NAME}_v0.1.0.zip.sha256").read_text())
    assert checksums[0] == checksums[1]
