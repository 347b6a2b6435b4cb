"""Fixtures that several tests share."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter, on the CPU. It reads this when it is imported, which
    # what the tests import may do.
    os.environ["TRITON_INTERPRET"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def shared(path: str) -> Path:
    """A file of the team's shared folder; the test is skipped where that folder is not."""
    file = SHARED / path
    if not file.exists():
        pytest.skip(f"needs {path} of the developers' shared folder, which is not here")
    return file


def _root_writes_everywhere() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o500)
        return os.access(folder, os.W_OK)


read_only = pytest.mark.skipif(
    _root_writes_everywhere(),
    reason="root writes everywhere, unless by setpriv --inh-caps=-all --bounding-set=-all",
)


# The files whose slow tests take the most minutes, in this order.
LONGEST = [
    "test_real_ct.py",
    "workflows/test_export.py",
    "test_bundle_runs.py",
    "test_documented.py",
    "test_label_options.py",
    "workflows/test_nnunet.py",
    "networks/test_precision.py",
    "faults/test_killed.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that none begins when the other process is about to end."""
    order = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """What a verb of the command line kept quiet in one test is heard in the next."""
    yield
    logging.disable(logging.NOTSET)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test that passed has to say, by record_property("say", ...), in whichever process."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "say":
                terminalreporter.write_line(str(value).strip())


class GoldenCase:
    """Arguments, reference state dict and vectors of one golden case."""

    def __init__(self, name: str) -> None:
        import numpy as np

        sys.path.insert(0, str(shared("gold/weights.py").parent))
        try:
            weights: ModuleType = __import__("weights")
        finally:
            sys.path.pop(0)
        case = json.loads(shared(f"gold/{name}.json").read_text())
        self.arguments = case["arguments"]
        self.parameter_count = case["parameter_count"]
        self.tolerance = case["tolerance"]
        self.state_dict = weights.state_dict(case["parameters"])
        with np.load(shared(f"gold/{name}.npz")) as vectors:
            self.vectors = {key: torch.from_numpy(vectors[key]) for key in vectors}


@pytest.fixture
def whole_convolutions() -> Iterator[None]:
    """Gradients in bfloat16 that torch sets in full, as in trainings of bundles."""
    from common.ops import WholeConvolutions  # which may import Triton

    with WholeConvolutions():
        yield
