"""The oldest versions allowed are true, and everything that says so agrees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from ignite.engine import Engine
from monai.handlers import CheckpointLoader
from packaging.requirements import Requirement
from torch import nn

from . import torch_floor
from .conftest import REPOSITORY

PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
NEEDED = PYPROJECT.partition("\ndependencies = [")[2].partition("\n]")[0]
REQUIREMENTS = [Requirement(text) for text in re.findall(r'"(.+)"', NEEDED)]
FLOORS = {
    requirement.name: spec.version
    for requirement in REQUIREMENTS
    for spec in requirement.specifier
    if spec.operator == ">="
}


def test_floors_in_the_readme():
    readme = (REPOSITORY / "README.md").read_text().replace("\n", " ")
    assert f"from torch {FLOORS['torch']} and MONAI {FLOORS['monai']}, the oldest" in readme
    python = re.search(r'requires-python = ">=([\d.]+)"', PYPROJECT)
    assert python is not None
    assert f"Python {python[1]} or later" in readme
    assert f'target-version = "py{python[1].replace(".", "")}"' in PYPROJECT
    assert f'python_version = "{python[1]}"' in PYPROJECT  # of mypy


def test_what_was_tested_is_allowed():
    """The pins of both environments, and the versions in the bundles' metadata."""
    tested: list[tuple[str, str, str]] = []
    for file in ("constraints.txt", "constraints-label.txt"):
        pins = re.findall(r"^([\w-]+)==([\w.]+)", (REPOSITORY / file).read_text(), re.M)
        tested += [(file, name, version) for name, version in pins]
    for file in sorted(REPOSITORY.glob("bundles/*/configs/metadata.json")):
        meta = json.loads(file.read_text())
        named = {"torch" if key == "pytorch" else key: meta[f"{key}_version"]
                 for key in ("monai", "pytorch", "numpy")}  # fmt: skip
        named |= meta["required_packages_version"]
        tested += [(str(file), name, version) for name, version in named.items()]
    assert {"torch", "monai", "numpy", "scipy"} <= {name for _, name, _ in tested} & FLOORS.keys()
    for file, name, version in tested:
        for requirement in REQUIREMENTS:
            if requirement.name == name:
                assert version in requirement.specifier, f"{file}: {name} {version}"


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_monais_loader_runs_no_code_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As where a bundle's evaluator runs alone, without the checks of its run."""
    monkeypatch.chdir(tmp_path)
    network = nn.Linear(1, 1)
    torch.save({"model": network.state_dict(), "more": Malicious()}, "model.pt")
    loader = CheckpointLoader("model.pt", {"model": network}, map_location=torch.device("cpu"))
    engine = Engine(lambda engine, batch: None)
    loader.attach(engine)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        engine.run([0])
    assert not Path("executed").exists()


# Of a later torch, where common.workflows.export has asked for that.
LATER = {"torch.compiler.is_exporting", "torch.export.Dim.DYNAMIC"}


def test_the_oldest_torch_has_all_that_is_used():
    """See torch_floor.py, which read its wheel."""
    listed = set(torch_floor.LISTED.read_text().splitlines())
    assert FLOORS["torch"] == torch_floor.FLOOR
    assert torch_floor.used() - listed == LATER


def test_what_is_used_is_seen(tmp_path: Path):
    (tmp_path / "module.py").write_text(
        "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
        "nn.Conv3d(1, 1, kernel_size=3)\nF.pad(torch.rand(1).mT, [1], value=torch.pi)\n"
    )
    assert torch_floor.used(tmp_path) == {
        "torch.nn",
        "torch.nn.Conv3d",
        "torch.nn.Conv3d kernel_size",
        "torch.nn.functional",
        "torch.nn.functional.pad",
        "torch.nn.functional.pad value",
        "torch.Tensor.mT",
        "torch.pi",
        "torch.rand",
    }
