"""Cases of a training, read once: kept in memory as far as that is free, or on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from monai.data import CacheDataset, Dataset, PersistentDataset
from monai.data.utils import pickle_hashing
from monai.transforms import Compose

from ..errors import InputError, input_error_in

_logger = logging.getLogger(__name__)
_CACHES = ("memory", "disk", "none")
_FREE = 0.2  # of the memory, which caching leaves


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
            memory; "disk" keeps all in `cache_dir`, for later trainings too, as long as the files
            and the preprocessing are the same; "none" keeps nothing.
        cache_num: see there.
        cache_dir: a folder, for "disk".
        strict: whether a case that cannot be read ends the training; else the next one takes its
            place, and the log says so.

    Raises:
        InputError: an argument is not as above.
    """
    if cache not in _CACHES:
        raise InputError(f"cache is {cache!r}; allowed are {', '.join(map(repr, _CACHES))}.")
    if strict not in (True, False):
        raise InputError(f"strict is {strict!r}; allowed are True and False.")
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
        memory = psutil.virtual_memory()
        if memory.available < _FREE * memory.total:
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
        super().__init__(
            data=data,
            transform=transform,
            cache_dir=cache_dir,
            hash_func=_digest,
            hash_transform=pickle_hashing,
            track_meta=True,
        )


def _digest(case: dict[str, Any]) -> bytes:
    """Of what its files are called, their sizes, and when they were written."""
    files = [
        Path(str(file))
        for value in case.values()
        for file in (value if isinstance(value, (list, tuple)) else [value])
    ]
    found = [(str(f), *_stamp(f)) for f in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest().encode()


def _stamp(file: Path) -> tuple[int, int]:
    if not file.is_file():
        return 0, 0
    status = file.stat()
    return status.st_size, status.st_mtime_ns
