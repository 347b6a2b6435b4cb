"""Sliding windows in bounded memory: MONAI's result, on disk, and where memory is short."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SliceInferer, SlidingWindowInferer
from torch import Tensor, nn

from common import scratch
from common.errors import InputError
from common.inferers import BoundedSliceInferer, BoundedSlidingWindowInferer

ROI = (8, 8, 6)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv3d(1, 5, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize("in_memory", [0, 2**28])
@pytest.mark.parametrize("size", [(9, 13, 20), (5, 15, 9), (20, 9, 8), (3, 4, 5)])
def test_as_monais(network: nn.Module, size: tuple[int, ...], in_memory: int):
    volumes = MetaTensor(torch.randn(2, 1, *size), meta={"filename_or_obj": "a.nii"})
    options: list[dict[str, Any]] = [
        {"mode": "gaussian", "overlap": 0.5, "sw_batch_size": 3, "cval": -1.0},
        {"mode": "constant", "overlap": (0.25, 0.5, 0), "padding_mode": "replicate"},
    ]
    for chosen in options:
        expected = SlidingWindowInferer(ROI, **chosen)(volumes, network)
        found = BoundedSlidingWindowInferer(ROI, **chosen, in_memory=in_memory)(volumes, network)
        assert isinstance(found, MetaTensor)
        assert found.meta == expected.meta
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 2])
def test_slices_as_monais(axis: int):
    torch.manual_seed(0)
    network = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    volume = torch.randn(1, 2, 9, 20, 11)
    options: dict[str, Any] = {"roi_size": (8, 8), "spatial_dim": axis, "sw_batch_size": 4}
    expected = SliceInferer(**options)(volume, network)
    found = BoundedSliceInferer(**options, in_memory=0)(volume, network)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_several_outputs_are_monais(network: nn.Module):
    """As of deep supervision, in training mode; some at a time where memory is short."""

    def scales(x: Tensor) -> list[Tensor]:
        if len(x) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return [network(x), network(x)[..., ::2, ::2, ::2]]

    volume = torch.randn(1, 1, 16, 12, 8)
    expected = SlidingWindowInferer(ROI, 1, 0.5)(volume, scales)
    found = BoundedSlidingWindowInferer(ROI, 4, 0.5)(volume, scales)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_sums_are_on_disk_and_not_in_memory(network: nn.Module):
    inferer = BoundedSlidingWindowInferer(ROI, in_memory=0)
    logits = inferer(torch.randn(1, 1, 40, 12, 12), network)
    assert logits.untyped_storage().data_ptr() in scratch._maps
    assert scratch.slowest_axis(logits, 2) == 2, "windows are taken along the longest axis"
    kept = len(scratch._maps)
    del logits
    assert len(scratch._maps) == kept - 1, "the file ends with the array"


class Wanting(nn.Module):
    """A network that has not the memory for more than `most` windows, or for none on a device."""

    def __init__(self, network: nn.Module, error: str, most: int = 0, device: str = "cpu") -> None:
        super().__init__()
        self.network, self.error, self.most = network, error, most
        self.scale = nn.Parameter(torch.ones((), device=device))

    def to(self, device: str) -> Wanting:  # type: ignore[override]
        self.scale = nn.Parameter(torch.ones((), device=device))
        self.most = 99
        return self

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            if self.error == "CPU":
                torch.empty(2**55)  # which torch's allocator has not
            raise {"CUDA": torch.cuda.OutOfMemoryError}.get(self.error, RuntimeError)(self.error)
        return self.network(x)


# A RuntimeError of these words, which is no OutOfMemoryError of torch.
OTHERS = [
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "HIP error: out of memory",
    "MPS backend out of memory (MPS allocated: 6 GB, other allocations: 1 GB, max allowed: 7 GB)",
]


@pytest.mark.parametrize("error", ["CUDA", "CPU", *OTHERS])
def test_fewer_windows_where_memory_is_short(
    network: nn.Module, error: str, caplog: pytest.LogCaptureFixture
):
    volume = torch.randn(1, 1, 20, 13, 12)
    inferer = BoundedSlidingWindowInferer(ROI, 7, 0.5)
    with caplog.at_level(logging.WARNING):
        found = inferer(volume, Wanting(network, error, most=2))
    expected = SlidingWindowInferer(ROI, 7, 0.5)(volume, network)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0] for line in lines] == [
        "There is not the memory for 7 windows at a time",
        "There is not the memory for 3 windows at a time",
    ]
    assert inferer.sw_batch_size == 1, "from now on"


def test_on_the_cpu_where_memory_is_short(network: nn.Module, caplog: pytest.LogCaptureFixture):
    """The meta device is as another one, on which nothing is computed."""
    volume = torch.randn(1, 1, 20, 13, 12)
    with caplog.at_level(logging.WARNING):
        found = BoundedSlidingWindowInferer(ROI)(volume, Wanting(network, "CUDA", device="meta"))
    torch.testing.assert_close(found, SlidingWindowInferer(ROI)(volume, network))
    assert "memory for one window on meta" in caplog.text
    assert "the network is on the CPU" in caplog.text


def test_without_memory_for_one_window(network: nn.Module):
    volume = torch.randn(1, 1, 20, 13, 12)
    message = "more memory for one window of 8 x 8 x 6 than there is on cpu"
    for error in ("CUDA", "CPU", *OTHERS):
        with pytest.raises(InputError, match=message):
            BoundedSlidingWindowInferer(ROI, 4)(volume, Wanting(network, error))
    for bug in ("a bug", "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", "an illegal memory access"):
        with pytest.raises(RuntimeError, match=bug):
            BoundedSlidingWindowInferer(ROI, 4)(volume, Wanting(network, bug))
