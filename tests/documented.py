"""The commands of the pages, and a folder in which they run as they are written."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.data.phantom import write_phantom

from . import preloaded
from .conftest import REPOSITORY
from .test_docs import read
from .zoo.conftest import edit

LIVER, LUNG, HIPPOCAMPUS = (
    f"{name}_lightm_unet_segmentation" for name in ("liver_ct", "lung_cxr", "hippocampus_mr")
)
_SHELL = ("", "bash", "sh")  # languages of blocks that are commands
_NETWORK = {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]}
_UNETR = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
_SHORT = {"max_epochs": 1, "epoch_length": 2, "batch_size": 1}
_IN_A_SHELL = re.compile(r"[$|&;<>`]")  # what only a shell does


class Command(NamedTuple):
    """A command of a page, its lines joined, without comments.

    Attributes:
        heading: that it is under.
        python: whether it is a block of Python.
    """

    page: str
    heading: str
    text: str
    python: bool

    @property
    def module(self) -> str | None:
        """What ``python -m`` runs, if it does."""
        found = re.match(r"python -m (\S+)", self.text)
        return found[1] if found else None


def commands(page: str) -> list[Command]:
    """All commands of a page of the repository, in their order."""
    found = []
    for block in read(REPOSITORY / page).blocks:
        if block.language == "python":
            found.append(Command(page, block.heading, block.text.strip(), True))
        elif block.language in _SHELL:
            found += [Command(page, block.heading, text, False) for text in shell_lines(block.text)]
    return found


def shell_lines(script: str) -> Iterator[str]:
    """The commands of a script: lines, with those that a backslash or a loop goes on in."""
    loop: list[str] = []
    for line in script.replace("\\\n", "").splitlines():
        line = re.sub(r" {2,}", " ", re.sub(r"(^|\s{2,})#.*", "", line)).strip()
        if loop or line.startswith("for "):
            loop.append(line)
            if line == "done":
                yield "\n".join(loop)
                loop = []
        elif line:
            yield line


def json_blocks(page: str) -> list[str]:
    """The blocks of JSON on a page."""
    return [x.text for x in read(REPOSITORY / page).blocks if x.language == "json"]


def can_run(command: Command) -> bool:
    """Whether there is what it begins with."""
    if command.python:
        return True
    if command.module is not None:
        return importlib.util.find_spec(command.module) is not None
    first = command.text.split()[0]
    return first in ("cd", "export", "eval", "rm", "mkdir", "cp") or shutil.which(first) is not None


class Workplace:
    """A folder that is that of a small bundle, with weights, a scan, data, and other bundles.

    Args:
        template: what `make_template` made, of which this is a copy.
        folder: a new one.
        paths: what stands in commands for paths, and what these are below the folder.
    """

    def __init__(self, template: Path, folder: Path, paths: Mapping[str, str]) -> None:
        self.folder = folder / LIVER
        shutil.copytree(template, self.folder, symlinks=True)
        self._here = self.folder
        self._paths = {name: self.folder / path for name, path in paths.items()}

    def home(self) -> None:
        """Go back to the folder in which a page's commands begin."""
        self._here = self.folder

    def run(self, command: Command, replaced: Mapping[str, str]) -> str:
        """What a command says, with other words for some of it."""
        text = command.text
        for old, new in replaced.items():
            text = text.replace(old, new)
        for name in sorted(self._paths, key=len, reverse=True):
            text = re.sub(rf"(?<![\w/]){re.escape(name)}(?!\w)", str(self._paths[name]), text)
        if text.startswith("cd "):
            self._here = (self._here / text.removeprefix("cd ")).resolve()
            assert self._here.is_dir(), f"{command.page}: {text}"
            return ""
        done = self._done(command, text)
        said = f"{done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{command.page}: {text}\n{said}"
        assert "Traceback" not in said, f"{command.page}: {text}\n{said}"
        return str(done.stdout)

    def _done(self, command: Command, text: str) -> subprocess.CompletedProcess[str]:
        if command.python:
            return preloaded.run("tests.documented", text, cwd=self._here)
        words = [match for word in shlex.split(text) for match in self._matches(word)]
        if command.module is not None and not _IN_A_SHELL.search(text):
            return preloaded.run(command.module, *words[3:], cwd=self._here)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "--norc", "-euo", "pipefail", "-c", text],
            cwd=self._here,
            env=os.environ | {"PATH": path, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
        )

    def _matches(self, word: str) -> list[str]:
        """The files that a word of a shell's stands for."""
        found = sorted(glob.glob(word, root_dir=self._here)) if "*" in word else []
        return found or [word]


def make_template(folder: Path) -> Path:
    """A small bundle's folder, trained for an epoch; below it data, and the bundles by name."""
    here = folder / LIVER
    for name in (LIVER, LUNG, HIPPOCAMPUS):
        shutil.copytree(REPOSITORY / "bundles" / name, here / "bundles" / name, ignore=_training)
    sizes: dict[str, Any] = {"spacing": [8, 8, 8], "patch_size": [32, 32, 16]}
    _shrink(here / "bundles" / LIVER, sizes)
    _shrink(here / "bundles" / LUNG, {"image_size": [32, 32]})
    edit(here / "bundles" / LIVER, "networks/unetr", _small_unetr)
    data = write_phantom(here / "data", cases=6, seed=1, size=48, progress=False)
    write_phantom(here / "lungs", cases=6, seed=1, kind="cxr", size=64, progress=False)
    write_phantom(here / "mr", cases=1, seed=1, kind="mr", progress=False)
    bundle = here / "bundles" / LIVER
    (image,) = (data / "imagesTs").iterdir()
    shutil.copy(image, bundle / "scan.nii.gz")
    words = ["run", "--config_file", "configs/train.json", "--dataset_dir", data]
    done = preloaded.run("monai.bundle", *words, cwd=bundle)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(bundle, here, dirs_exist_ok=True)
    shutil.copy(next((here / "lungs/CXR_png").iterdir()), here / "chest.png")
    (here / "earlier").mkdir()
    shutil.copy(bundle / "models/model.pt", here / "earlier")
    (here / "RUN/models").mkdir(parents=True)
    shutil.copy(here / "bundles" / HIPPOCAMPUS / "models/model.pt", here / "RUN/models")
    shutil.copy(data / "labelsTs" / image.name, here / "scan_seg.nii.gz")
    shutil.copytree(data / "labelsTs", here / "masks")
    for name, text in zip(("lungs", "hippocampus"), json_blocks("docs/studies.md"), strict=True):
        (here / f"{name}.json").write_text(text)
    return here


def _training(folder: str, names: list[str]) -> list[str]:
    """What somebody's own training left in a checkout, or in a bundle that ships no weights."""
    ships = Path(folder).parent.name in (LUNG, HIPPOCAMPUS)
    left = {"eval", "__pycache__"} | (set() if ships else {x for x in names if x.endswith(".pt")})
    return [name for name in names if name in left]


def _shrink(bundle: Path, sizes: Mapping[str, Any]) -> None:
    """Make a bundle's network and images small, in all of its configs alike."""

    def shrink(content: dict[str, Any], train: bool) -> None:
        definition = content["network_def"]
        (definition if train else definition["default"]).update(_NETWORK)
        for id_, value in sizes.items():
            content[id_] = value if train else f"$@settings.get({id_!r}, {value!r})"

    for name in ("train", "inference", "evaluate"):
        edit(bundle, name, lambda content, name=name: shrink(content, name == "train"))
    edit(bundle, "train", lambda content: content.update(_SHORT))


def _small_unetr(content: dict[str, Any]) -> None:
    content["network_def"].update(_UNETR)
    content.update(max_epochs=1, epoch_length=2)


if __name__ == "__main__":
    exec(compile(sys.argv[1], "page", "exec"), {"__name__": "__main__"})
