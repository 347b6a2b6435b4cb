"""Arrays as large as classes x volume: in memory where small, else in a file without a name."""

from __future__ import annotations

import logging
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .errors import InputError

_logger = logging.getLogger(__name__)

IN_MEMORY = 2**28  # bytes; what is smaller is not worth a file
_SLAB = 2**26  # bytes that are worked on at once
_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by where their data begins


def zeros(
    shape: Sequence[int],
    axis: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    in_memory: int = IN_MEMORY,
) -> Tensor:
    """Zeros, whose slabs along an axis lie one after the other wherever they are kept.

    On a GPU if they take at most half of what is free there, which the network needs as well, and
    else beside the CPU: in its memory up to `in_memory` bytes, and then in a file of the system's
    temporary folder, of which pages are in memory while they are worked on (see `release`). The
    file has no name, and ends with the array.

    Raises:
        InputError: the temporary folder has no room.
    """
    stored = [shape[axis], *shape[:axis], *shape[axis + 1 :]]
    size = math.prod(stored) * dtype.itemsize
    device = torch.device(device)
    if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]) // 2:
        _logger.warning(
            "%.1f GiB of probabilities are gathered beside the CPU: of the GPU's memory %.1f GiB "
            "are free, and the network needs the half of that.",
            size / 2**30,
            free / 2**30,
        )
        device = torch.device("cpu")
    if device.type == "cpu" and size > in_memory:
        flat = _mapped(size, dtype)
    else:
        flat = torch.zeros(math.prod(stored), dtype=dtype, device=device)
    return flat.view(stored).movedim(0, axis)


def release(*arrays: Tensor) -> None:
    """Leave to the system what of arrays in files is in memory; it is read again when needed."""
    for array in arrays:
        mapping = _maps.get(array.untyped_storage().data_ptr())
        if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def slowest_axis(array: Tensor, first: int) -> int:
    """The axis, of those from `first` on, along which slabs lie one after the other."""
    return max(range(first, array.ndim), key=lambda axis: (array.stride(axis), -axis))


def slabs(shape: Sequence[int], axis: int, itemsize: int = 4) -> Iterator[slice]:
    """Parts of an axis, one after the other, in which an array has some 64 MiB."""
    row = math.prod(shape) // max(shape[axis], 1) * itemsize
    step = max(_SLAB // max(row, 1), 1)
    for start in range(0, shape[axis], step):
        yield slice(start, min(start + step, shape[axis]))


def along(axis: int, part: Any) -> tuple[Any, ...]:
    """The index that takes a part of one axis and all of those before and after."""
    return (*[slice(None)] * axis, part)


def _mapped(size: int, dtype: torch.dtype) -> Tensor:
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile() as file:
            # A page that finds no room on the disk when it is written ends the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            elif shutil.disk_usage(folder).free > size:
                file.truncate(size)
            else:
                raise OSError(None, "the disk is full")
            mapping = mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise InputError(
            f"The temporary folder {folder} has no room for {size / 2**30:.1f} GiB of "
            f"probabilities ({error.strerror}); allowed is one that has, by the environment "
            "variable TMPDIR."
        ) from error
    flat = torch.frombuffer(mapping, dtype=dtype)
    _maps[flat.data_ptr()] = mapping
    return flat
