"""Bundles run as users run them: by the command line of monai.bundle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from . import preloaded
from .conftest import REPOSITORY

FRESH = ("-m",)  # the interpreter itself


def command(bundle: Path, config: str | Sequence[str], **options: object) -> list[str]:
    """The arguments of monai.bundle that run a bundle's configs, by their names."""
    files = [config] if isinstance(config, str) else config
    found = [str(bundle / f"configs/{name}.json") for name in files]
    return ["run", "--config_file", str(found), *overrides(options)]


def overrides(options: dict[str, object]) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


def run(
    arguments: Sequence[str], cwd: Path = REPOSITORY, launcher: Sequence[str] | None = None
) -> subprocess.CompletedProcess[str]:
    """In a process that has the imports behind it, or in fresh ones by a launcher.

    A bundle's tests have each of its configs run by `FRESH` once: its imports are its own, too.
    """
    if launcher is None:
        return preloaded.run("monai.bundle", *arguments, cwd=cwd)
    return subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, "monai.bundle", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


def succeed(*args, **kwargs) -> str:
    done = run(*args, **kwargs)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def sentence(arguments: Sequence[str]) -> str:
    """What a run that fails for its input says: one sentence, and no traceback anywhere."""
    done = run(arguments)
    assert done.returncode == 1, done.stdout[-2000:]
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def check_export_of_monai(
    folder: Path,
    bundle: Path,
    checkpoint: Path,
    small: dict[str, object],
    network: nn.Module,
    *size: int,
    channels: int = 1,
) -> None:
    """The bundle's ckpt_export gives the network's logits in a process without our packages.

    Args:
        folder: where its files go.
        small: options that make of the bundle's network the one given.
        size: of an image to compare; two samples.
        channels: of it.
    """
    meta, config = (str(bundle / f"configs/{name}.json") for name in ("metadata", "inference"))
    paths = ["--filepath", str(folder / "model.ts"), "--ckpt_file", str(checkpoint)]
    files = ["--meta_file", meta, "--config_file", config]
    succeed(["ckpt_export", "network_def", *paths, *files, *overrides(small)], cwd=folder)
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    network.eval()
    x = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = network.double()(x.double())
    torch.save({"x": x, "exact": exact}, folder / "expected.pt")
    program = """
import sys, torch
expected = torch.load("expected.pt")
network = torch.jit.load("model.ts")
y = network(expected["x"]).double()
torch.testing.assert_close(y, expected["exact"], rtol=1e-4, atol=1e-4)
y = network.double()(expected["x"].double())
torch.testing.assert_close(y, expected["exact"], rtol=1e-9, atol=1e-9)
assert not {"common", "monai"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=folder)
