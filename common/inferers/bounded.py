"""Sliding windows whose memory grows with the window, not with classes x volume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import SlidingWindowInferer
from monai.inferers.utils import _get_scan_interval
from monai.utils import BlendMode, convert_to_dst_type, ensure_tuple_rep, fall_back_tuple
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from .. import scratch
from ..errors import InputError, are_numbers, first_line

_logger = logging.getLogger(__name__)


class BoundedSlidingWindowInferer(SlidingWindowInferer):
    """MONAI's `SlidingWindowInferer`, of which not all need fit into the memory.

    Windows, their weights and padding are MONAI's, and so is the result, but for the rounding of
    sums: windows are taken in their order along the axis on which the volume is longest, measured
    in windows. Sums gather in `common.scratch`: on the GPU, in memory or on disk. What of a network
    is no single map on the window's grid, such as the outputs of deep supervision, MONAI gathers.

    Where the network needs more memory than there is, it gets half the windows at a time, from
    then on, and the last one on the CPU; the log says so.

    Args:
        roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, progress: as for
            MONAI's.
        in_memory: bytes of sums that are gathered in the CPU's memory; more are on disk.

    Raises:
        InputError: at a call, windows are not of as many axes as the volume, none of them fits into
            the memory, or the sums fit nowhere.
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: BlendMode | str = BlendMode.CONSTANT,
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        progress: bool = False,
        in_memory: int = scratch.IN_MEMORY,
    ) -> None:
        super().__init__(
            roi_size=roi_size,
            sw_batch_size=sw_batch_size,
            overlap=overlap,
            mode=mode,
            sigma_scale=sigma_scale,
            padding_mode=padding_mode,
            cval=cval,
            progress=progress,
        )
        self.sw_batch_size: int = sw_batch_size
        self.in_memory = in_memory

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Logits (b, classes, ...) of volumes (b, channels, ...)."""

        def predict(windows: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self._predict(network, windows, *args, **kwargs)

        size = list(inputs.shape[2:])
        dims = len(size)
        roi = self._windows(size)
        padded, start = _pad(inputs, roi, self.padding_mode, self.cval)
        whole = padded.shape[2:]
        interval = _get_scan_interval(whole, roi, dims, ensure_tuple_rep(self.overlap, dims))
        axis = min(range(dims), key=lambda i: roi[i] / whole[i])
        windows = [(slice(None), *window) for window in dense_patch_slices(whole, roi, interval)]
        windows.sort(key=lambda window: window[axis + 1].start)
        patch = get_valid_patch_size(whole, roi)
        weights = compute_importance_map(
            patch, self.mode, self.sigma_scale, inputs.device, inputs.dtype
        )
        sums = None
        bar = tqdm(total=len(padded) * len(windows), disable=not self.progress)
        for number, volume in enumerate(padded):
            ready = first = 0
            while first < len(windows):  # of as many at a time as memory allows by then
                batch = windows[first : first + self.sw_batch_size]
                values = torch.stack([volume[window] for window in batch])
                logits = predict(values, *args, **kwargs)
                if not isinstance(logits, Tensor) or logits.shape[2:] != roi:
                    bar.close()
                    return super().__call__(inputs, predict, *args, **kwargs)
                if sums is None:
                    # The last channel is of the weights.
                    shape = (len(padded), logits.shape[1] + 1, *whole)
                    sums = scratch.zeros(
                        shape, axis + 2, inputs.dtype, inputs.device, self.in_memory
                    )
                    weights = weights.to(sums.device)
                for window, logit in zip(batch, logits, strict=True):
                    ready = _divide(sums[number], axis + 1, ready, window[axis + 1].start)
                    sums[number, :-1][window].addcmul_(logit.to(sums), weights)
                    sums[number, -1:][window] += weights
                    scratch.release(sums)
                first += len(batch)
                bar.update(len(batch))
            assert sums is not None
            _divide(sums[number], axis + 1, ready, whole[axis])
        bar.close()
        assert sums is not None
        inside = (slice(a, a + n) for a, n in zip(start, size, strict=True))
        here = (slice(None), slice(-1), *inside)
        result = sums[here]
        if isinstance(inputs, MetaTensor):
            like = MetaTensor([]).copy_meta_from(inputs, copy_attr=False)
            result = convert_to_dst_type(result, like, device=sums.device)[0]
        return result

    def _windows(self, size: Sequence[int]) -> tuple[int, ...]:
        """Their size, of a volume of this one."""
        asked: Any = self.roi_size
        several = isinstance(asked, (list, tuple))
        if not are_numbers(asked if several else [asked], len(size) if several else 1, whole=True):
            raise InputError(
                f"patch_size, of windows, is {asked!r}; allowed are {len(size)} whole numbers, one "
                "for each axis."
            )
        return fall_back_tuple(asked, size)

    def _predict(
        self, network: Callable[..., Any], windows: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The network's output, of as many windows at a time as there is memory for."""
        while True:
            try:
                device = _device(network) or windows.device
                return _joined(
                    [
                        network(part.to(device), *args, **kwargs)
                        for part in windows.split(self.sw_batch_size)
                    ]
                )
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                problem = first_line(error)
            # Not in the except clause, whose error keeps all that the network had computed.
            self._need_less(network, windows, problem)

    def _need_less(self, network: Callable[..., Any], windows: Tensor, problem: str) -> None:
        device = _device(network) or windows.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        batch = min(self.sw_batch_size, len(windows))
        if batch > 1:
            self.sw_batch_size = batch // 2
            _logger.warning(
                "There is not the memory for %d windows at a time (%s): from now on it is %d.",
                batch,
                problem,
                self.sw_batch_size,
            )
        elif device.type != "cpu" and isinstance(network, nn.Module):
            network.to("cpu")
            _logger.warning(
                "There is not the memory for one window on %s (%s): from now on the network is on "
                "the CPU, which is slower.",
                device,
                problem,
            )
        else:
            size = " x ".join(map(str, windows.shape[2:]))
            raise InputError(
                f"The network needs more memory for one window of {size} than there is on "
                f"{device} ({problem}); allowed is a smaller window, by patch_size, or a machine "
                "with more memory."
            )


class BoundedSliceInferer(BoundedSlidingWindowInferer):
    """MONAI's `SliceInferer`, a 2D network over the slices of a volume, with bounded memory.

    Args:
        roi_size: of the windows in a slice, two numbers.
        spatial_dim: the axis across the slices.
        kwargs: as for `BoundedSlidingWindowInferer`.

    Raises:
        InputError: roi_size is not two whole numbers; or as that one.
    """

    def __init__(self, roi_size: Sequence[int], spatial_dim: int = 0, **kwargs: Any) -> None:
        if not are_numbers(roi_size, 2, whole=True):
            raise InputError(
                f"patch_size, of windows, is {roi_size!r}; allowed are two whole numbers."
            )
        window = list(roi_size)
        window.insert(spatial_dim, 1)
        super().__init__(window, **kwargs)
        self.spatial_dim = spatial_dim

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        slices = _OfSlices(network, self.spatial_dim + 2)
        return super().__call__(inputs, slices, *args, **kwargs)


class _OfSlices(nn.Module):
    """A 2D network, of windows that are one voxel thick along an axis."""

    def __init__(self, network: Callable[..., Any], axis: int) -> None:
        super().__init__()
        self.network = network
        self.axis = axis

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.network(x.squeeze(self.axis), *args, **kwargs)
        if isinstance(output, Tensor):
            return output.unsqueeze(self.axis)
        return [part.unsqueeze(self.axis) for part in output]


def _pad(inputs: Tensor, roi: Sequence[int], mode: str, value: float) -> tuple[Tensor, list[int]]:
    """Volumes that are nowhere smaller than a window, and where in them the volume begins."""
    volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
    lacking = [max(wanted - n, 0) for wanted, n in zip(roi, inputs.shape[2:], strict=True)]
    start = [n // 2 for n in lacking]
    if any(lacking):
        around = [(a, n - a) for a, n in zip(start, lacking, strict=True)]
        pad = [n for pair in reversed(around) for n in pair]
        # Only constants are filled with a value.
        volumes = F.pad(volumes, pad, mode, value if mode == "constant" else None)
    return volumes, start


def _divide(sums: Tensor, axis: int, start: int, stop: int) -> int:
    """Make means of sums (classes and weights, ...) between two places on an axis."""
    done = sums.narrow(axis, start, stop - start)
    for part in scratch.slabs(done.shape, axis):
        slab = done[scratch.along(axis, part)]
        slab[:-1] /= slab[-1:]
        scratch.release(sums)
    return stop


def _device(network: Callable[..., Any]) -> torch.device | None:
    """Where a network's parameters are."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), None)


def _joined(parts: list[Any]) -> Any:
    """The outputs of parts of a batch as one of the whole."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], Mapping):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    return [torch.cat(same) for same in zip(*parts, strict=True)]


def _is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU and its libraries, of torch's allocator on the CPU, or of what allocates itself."""
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or any(
        words in str(error)
        for words in ("out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator")
    )
