"""Imports run one way: read from the syntax trees, so that no import is missed."""

import ast
import sys
from pathlib import Path

import pytest

from .conftest import REPOSITORY

COMMON = REPOSITORY / "common"
FRAMEWORKS = {"torch", "monai", "numpy", "ignite", "nibabel", "scipy", "matplotlib", "tqdm", "PIL"}
# what every other part may use
BASE = {"collection", "components", "distributed", "errors", "files", "ignored", "scratch"}
DOMAIN = BASE | {
    *("ops", "blocks", "networks", "losses", "data", "transforms", "inferers", "evaluation"),
    "checkpoints",
}

# part of the package -> (other parts, third-party packages) that it may import
ALLOWED: dict[str, tuple[set[str], set[str]]] = {
    "ops": (set(), {"torch", "triton", "mamba_ssm", "causal_conv1d"}),
    "blocks": ({"ops", "distributed"}, {"torch", "monai"}),
    "networks": (
        {"blocks", "ops", "errors"},
        {"torch", "monai", "dynamic_network_architectures"},
    ),
    "losses": (BASE, FRAMEWORKS),
    "data": (BASE, FRAMEWORKS | {"highdicom", "itk", "psutil", "pydicom", "skimage"}),
    "transforms": (BASE | {"data"}, FRAMEWORKS),
    "inferers": (BASE | {"checkpoints", "ops"}, FRAMEWORKS),
    "evaluation": (
        BASE | {"__version__", "data"},
        FRAMEWORKS | {"jinja2", "skimage", "statsmodels", "umap"},
    ),
    "checkpoints": (BASE, {"torch", "monai", "numpy"}),
    "workflows": (
        DOMAIN | {"__version__", "measure", "zoo"},
        FRAMEWORKS | {"filelock", "nnunetv2", "onnxruntime", "psutil", "ray"},
    ),
    "zoo": (
        BASE | {"__version__", "checkpoints", "data", "evaluation", "ops"},
        {"torch", "monai", "tqdm", "huggingface_hub", "httpx"},
    ),
    "nnunet": (DOMAIN, FRAMEWORKS | {"nnunetv2"}),
    "cli": (DOMAIN | {"doctor", "nnunet", "workflows", "zoo"}, {"fire", "torch"}),
    "distributed": (set(), {"torch"}),
    "optimizers": (BASE, {"torch"}),
    "doctor": ({"__version__", "ops"}, {"torch"}),
    "measure": ({"doctor", "errors"}, {"psutil", "torch"}),
    "collection": (set(), set()),
    "components": (set(), {"numpy", "scipy"}),
    "errors": (set(), set()),
    "files": ({"errors"}, {"fire"}),
    "ignored": (set(), {"torch"}),
    "scratch": ({"errors"}, {"torch"}),
    "__init__": ({"workflows"}, set()),
    "__main__": ({"cli"}, set()),
}


def imported(path: Path) -> set[tuple[str, bool]]:
    """(name, whether it is a part of this package) of everything that a file imports."""
    package = path.relative_to(REPOSITORY).with_suffix("").parts[:-1]
    found: set[tuple[str, bool]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            modules = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for module in modules:
            if module[0] == "common":
                found.add((module[1] if len(module) > 1 else "__init__", True))
            else:
                found.add((module[0], False))
    return found


@pytest.mark.parametrize(
    "path", sorted(COMMON.rglob("*.py")), ids=lambda path: str(path.relative_to(COMMON))
)
def test_imports_run_one_way(path: Path):
    part = path.relative_to(COMMON).parts[0].removesuffix(".py")
    parts, packages = ALLOWED[part]
    for name, ours in imported(path):
        if ours:
            assert name in parts | {part}, f"{part} imports common.{name}"
        else:
            assert name in packages or name in sys.stdlib_module_names, f"{part} imports {name}"


def test_nothing_imports_bundles():
    for path in REPOSITORY.glob("*/**/*.py"):
        if not any(part.startswith(".venv") for part in path.parts):
            assert ("bundles", False) not in imported(path), path
