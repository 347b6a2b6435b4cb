"""Cases of a training, read once: kept in memory as far as that is free, or on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from glob import escape
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import monai
import numpy as np
import psutil
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.transforms import Compose
from monai.utils import TraceKeys, convert_to_tensor
from torch import Tensor

from ..errors import InputError, check_choice, check_switches, first_line, input_error_in
from ..files import replacing

_logger = logging.getLogger(__name__)
_CACHES = ("memory", "disk", "none")
_FREE = 0.2  # of the memory, which caching leaves
_ROOT = Path("/")  # where proc and sys are
# What metadata consist of, beside what torch and MONAI let weights_only load: numpy's arrays and
# scalars, and the keys of the operations that were applied.
_METADATA = [
    *(TraceKeys, np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]),
    *{type(np.dtype(code)) for code in np.typecodes["All"]},
]
_DETACHED = (".mhd", ".nhdr")  # headers, whose voxels are in a file beside them


def cached_dataset(
    data: Sequence[Any],
    transform: Compose,
    cache: str = "memory",
    cache_num: int = 24,
    cache_dir: str | Path | None = None,
    strict: bool = True,
) -> Dataset:
    """MONAI's dataset for a training, whose cases are prepared once.

    Args:
        data, transform: as for MONAI's; kept is what comes before the first random transform.
        cache: "memory" keeps up to `cache_num` cases, and fewer rather than the last fifth of the
            memory, of the host's or of what a container or a job may have; "disk" keeps all in
            `cache_dir`, for later trainings too, as long as the files, the preprocessing and
            MONAI's version are the same; "none" keeps nothing.
        cache_num: see there.
        cache_dir: a folder, for "disk".
        strict: whether a case that cannot be read ends the training; else the next one takes its
            place, and the log says so.

    Raises:
        InputError: an argument is not as above; later, when a case is wanted: it cannot be read,
            or `cache_dir` cannot be written.
    """
    check_choice("cache", cache, _CACHES)
    check_switches(strict=strict)
    transform = transform.flatten()  # or nothing is kept of what is in a Compose within it
    if cache == "disk":
        if cache_dir is None:
            raise InputError("cache is 'disk', but cache_dir is None; allowed is a folder.")
        return _OnDisk(data, transform, cache_dir, strict)
    return _InMemory(data, transform, cache_num if cache == "memory" else 0, strict)


class _Substituting(Dataset):
    """Where a case cannot be read, and strict is False, the next one that can."""

    strict: bool

    def _transform(self, index: int) -> Any:
        for step in range(len(self)):
            try:
                return super()._transform((index + step) % len(self))
            except Exception as error:
                sentence = input_error_in(error)  # MONAI wraps what its transforms raise
                if sentence is None or self.strict:
                    raise
                _logger.warning("Another case takes the place of one: %s", sentence)
        raise InputError("Not one of the cases can be read; allowed are those that check passes.")


class _Kept(CacheDataset):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._told = False
        super().__init__(*args, **kwargs)

    def _load_cache_item(self, idx: int) -> Any:
        """None where there is no memory for it, or where it is found wrong when it is needed."""
        available, total = _memory()
        if available < _FREE * total:
            if not self._told:
                _logger.warning(
                    "Not all of the %d cases that cache_num allows are kept in memory: less than "
                    "%.0f%% of it is free. --cache disk keeps them on disk.",
                    self.cache_num,
                    100 * _FREE,
                )
            self._told = True
            return None
        try:
            return super()._load_cache_item(idx)
        except Exception as error:
            if input_error_in(error) is None or self.strict:
                raise
            return None

    def _transform(self, index: int) -> Any:
        if index < self.cache_num and self._cache[index] is None:
            return Dataset._transform(self, index)
        return super()._transform(index)


class _InMemory(_Substituting, _Kept):
    def __init__(
        self, data: Sequence[Any], transform: Compose, cache_num: int, strict: bool
    ) -> None:
        self.strict = strict
        super().__init__(data=data, transform=transform, cache_num=cache_num)


class _OnDisk(_Substituting, PersistentDataset):
    def __init__(
        self, data: Sequence[Any], transform: Compose, cache_dir: str | Path, strict: bool
    ) -> None:
        self.strict = strict
        self._folder = Path(cache_dir)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        super().__init__(
            data=data,
            transform=transform,
            cache_dir=cache_dir,
            hash_func=_digest,
            hash_transform=_digest_of_transforms,
            track_meta=True,
        )

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except _NotKept as error:  # which is no fault of the case: no other takes its place
            raise _unwritable(self._folder, error) from error

    def _cachecheck(self, item_transformed: Any) -> Any:
        """The case, prepared up to the first random transform.

        MONAI's moves files there from the system's temporary folder, half of them if it is killed
        then and that is another file system, and fails for ever at what it cannot read.
        """
        digest = self.hash_func(item_transformed).decode() + self.transform_hash
        file = self._folder / f"{digest}.pt"
        if file.is_file():
            try:
                with torch.serialization.safe_globals(_METADATA):
                    return torch.load(file, weights_only=self.weights_only)
            except Exception as error:  # of many kinds, as what is wrong with the file
                _logger.warning(
                    "The cached case %s cannot be read (%s): it is prepared again.",
                    file,
                    first_line(error),
                )
        prepared = convert_to_tensor(
            self._pre_transform(deepcopy(item_transformed)),
            convert_numeric=False,
            track_meta=self.track_meta,
        )
        try:
            with replacing(file) as partial, partial.open("wb") as stream:
                torch.save(prepared, stream)
        except (OSError, RuntimeError) as error:  # torch makes the one of the other
            raise _NotKept(first_line(error)) from error
        return prepared


class _NotKept(Exception):
    """A case could not be written."""


def _unwritable(folder: Path, error: Exception) -> InputError:
    return InputError(
        f"cache_dir is {folder}, which cannot be written ({first_line(error)}); allowed is a "
        "folder with room for all cases, or another cache."
    )


def _digest(case: dict[str, Any]) -> bytes:
    """Of what its files are called, their sizes, and when they were written."""
    found = [
        (key, str(file), _stamps(Path(str(file))))
        for key, value in case.items()
        for file in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return _hashed(found)


def _stamps(path: Path) -> list[tuple[str, int, int]]:
    """Of a file, with what belongs to it; or of the files in a folder, such as a DICOM series."""
    files = [path]
    if path.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    elif path.suffix.lower() in _DETACHED:
        files = [*path.parent.glob(f"{escape(path.stem)}.*")]
    return sorted(
        (str(file), status.st_size, status.st_mtime_ns)
        for file in files
        if file.is_file()
        for status in [file.stat()]
    )


def _digest_of_transforms(transforms: Sequence[Any]) -> bytes:
    """The same in every process that makes the same transforms by the same MONAI."""
    return _hashed([monai.__version__, _plain(transforms)])


def _plain(value: Any) -> Any:
    """What defines a value, without where it is in memory: of an object its class and attributes.

    Pickles do not do: in them a tensor that processes share has a name of its own each time, and
    a lambda is none. Such a tensor is what processes tell each other, and no setting: it is left
    out. Of a function its code counts, not that of others which it calls.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if isinstance(value, Tensor):
        shared = value.is_shared() and not value.is_cuda  # as all are that are on a GPU
        return None if shared else [str(value.dtype), value.tolist()]
    if isinstance(value, Mapping):
        return [[_plain(key), _plain(inner)] for key, inner in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(map(json.dumps, map(_plain, value)))
    if isinstance(value, (list, tuple, Iterator)):
        return [_plain(inner) for inner in value]
    if isinstance(value, CodeType):
        return _plain([value.co_code, value.co_names, value.co_consts])
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        inner = [value.__code__, value.__defaults__, value.__kwdefaults__, cells]
        return [f"{value.__module__}.{value.__qualname__}", _plain(inner)]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return _plain(value.__reduce_ex__(2))  # as copying and pickling take it apart


def _hashed(plain: Any) -> bytes:
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest().encode()


def _memory() -> tuple[int, int]:
    """Bytes that are available, and that there are in all, to this process.

    Those of the host, or fewer where a control group, as of a container or of a Slurm job, has a
    limit: of all that the process is in, as each holds for what is within it. Pages of files that
    the kernel drops first count as available.
    """
    host = psutil.virtual_memory()
    available, total = host.available, host.total
    for folder, limit_name, usage_name in _control_groups():
        try:
            limit = int((folder / limit_name).read_text())
            usage = int((folder / usage_name).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # not for memory, not seen from within, or its limit is "max"
            continue
        statistics = dict(line.split() for line in lines)
        # In version 1 the number without "total" is that of the group without those within it.
        dropped = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
        available = min(available, limit - usage + int(dropped))
        total = min(total, limit)
    return available, total


def _control_groups() -> Iterator[tuple[Path, str, str]]:
    """Folders of this process's groups, from within outwards, and the names of two files there."""
    try:
        lines = (_ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = _ROOT / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            mount, names = mounts, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            mount, names = mounts / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            yield folder, *names
