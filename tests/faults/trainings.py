"""Small trainings that can be killed, by bundle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch

from common.data.phantom import write_phantom

from ..conftest import REPOSITORY
from ..preloaded import Running, start
from ..running import command
from ..test_bundle_runs import SMALL
from ..test_codebook_bundle import SMALL as CODEBOOK
from ..test_elanres_bundle import SMALL as ELANRES
from ..test_lung_bundle import SMALL as LUNG

EPOCHS = 4
# One window a volume, so that validation is short; the batch of the last iteration is smaller.
_VOLUMES = {"overlap": 0, "sw_batch_size": 8, "batch_size": 2, "cache_num": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "liver_ct_lightm_unet_segmentation": SMALL | _VOLUMES,
    "lung_cxr_lightm_unet_segmentation": LUNG,
    "liver_tumor_ct_elanres_msca_segmentation": ELANRES | _VOLUMES | {"split": [3, 1, 2]},
    "liver_tumor_ct_codebook_mamba_segmentation": CODEBOOK | _VOLUMES,
}


@dataclass(frozen=True)
class Training:
    """One that runs, or ran, in a folder."""

    bundle: str
    data: Path
    root: Path
    options: Mapping[str, Any] = field(default_factory=dict)

    configs: ClassVar[list[str]] = ["train"]

    def words(self, **more: Any) -> list[str]:
        self.root.mkdir(parents=True, exist_ok=True)
        options = OPTIONS[self.bundle] | {"max_epochs": EPOCHS} | self.options | more
        places = {"bundle_root": self.root, "dataset_dir": self.data}
        return command(REPOSITORY / "bundles" / self.bundle, self.configs, **places, **options)

    def start(self, **more: Any) -> Running:
        return start("monai.bundle", *self.words(**more), cwd=self.root)

    def succeed(self, **more: Any) -> str:
        done = self.start(**more).end()
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def fail(self, **more: Any) -> str:
        """The sentence of one that ends with exit code 1."""
        done = self.start(**more).end()
        assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
        return sentence(done.stderr)

    def continued(self) -> str:
        """What it says when it goes on, or begins anew where no epoch was finished."""
        return self.succeed(resume=(self.root / "models/last_epoch.pt").is_file())

    def state(self) -> dict[str, Any]:
        return torch.load(self.root / "models/last_epoch.pt", weights_only=True)

    def best(self) -> dict[str, torch.Tensor]:
        return torch.load(self.root / "models/model.pt", weights_only=True)


class TwoProcesses(Training):
    """One by torchrun, on the CPU."""

    configs: ClassVar[list[str]] = ["train", "multi_gpu_train"]

    def start(self, **more: Any) -> Torchrun:  # type: ignore[override]
        more |= {"device": "cpu", "split": [4, 2, 0]}
        return Torchrun(self.words(**more), self.root)


class Torchrun:
    """As `Running`."""

    def __init__(self, words: list[str], root: Path) -> None:
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
        self._out = root / ".torchrun"
        with self._out.open("w") as out:
            self.process = Child(
                [sys.executable, "-W", "ignore", "-m", *launcher, "monai.bundle", *words],
                cwd=REPOSITORY,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def output(self) -> str:
        return self._out.read_text()

    def kill(self) -> None:
        """All of it at once, as when a machine goes down."""
        for process in (*psutil.Process(self.process.pid).children(recursive=True), self.process):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self) -> subprocess.CompletedProcess:
        code = self.process.wait()
        return subprocess.CompletedProcess([], code, self.output(), "")


class Child(subprocess.Popen):
    def is_alive(self) -> bool:
        return self.poll() is None


def sentence(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr[-2000:]
    assert "Traceback" not in stderr
    return lines[0]


def phantom(folder: Path, bundle: str) -> Path:
    if "cxr" in bundle:
        return write_phantom(folder, cases=8, seed=1, kind="cxr", size=64)
    return write_phantom(folder, cases=6, seed=1, size=48)


def wait_for(what: Path, running: Running | Torchrun) -> None:
    """Until a file is there."""
    while not what.exists():
        assert running.process.is_alive(), running.output()[-3000:]
        time.sleep(0.02)


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
