"""Large arrays: where they are kept, how they lie there, and what a full disk says."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common import scratch
from common.errors import InputError


def resident_of_files() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return sum(int(x.split()[1]) for x in status if x.startswith(("RssFile:", "RssShmem:"))) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_released_is_not_in_memory_and_not_lost():
    size = 2**25
    before = resident_of_files()
    array = scratch.zeros((4, size // 16), 1, in_memory=0)
    array += 3
    assert resident_of_files() - before > 0.9 * size
    scratch.release(array[2:], array)
    assert resident_of_files() - before < 0.2 * size
    assert array.sum() == 3 * array.numel()


def test_what_is_in_memory_is_kept():
    array = scratch.zeros((4, 5), 1) + 1
    scratch.release(array)
    assert array.sum() == 20


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_lie_together(axis: int):
    array = scratch.zeros((3, 4, 5), axis, torch.uint8, in_memory=0)
    assert array.shape == (3, 4, 5)
    assert array.select(axis, 1).storage_offset() == array.numel() // array.shape[axis]
    assert scratch.slowest_axis(array, 0) == axis
    parts = [*scratch.slabs((3, 4, 5), axis, 2**30)]
    assert [part.stop - part.start for part in parts] == [1] * array.shape[axis]


@pytest.fixture
def small_files() -> Iterator[None]:
    """As on a disk that is full: no file grows beyond a page."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells of it before a file is written")
@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_said_before_anything_is_computed():
    with pytest.raises(InputError, match=r"folder /.* has no room for 0.0 GiB .* variable TMPDIR"):
        scratch.zeros((4, 2**20), 0, in_memory=0)


def test_a_full_gpu_leaves_it_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**20, 2**30))
    array = scratch.zeros((2, 2**18), 0, device="cuda:0")
    assert array.device.type == "cpu"
    assert "gathered beside the CPU" in caplog.text
