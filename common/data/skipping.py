"""Images that cannot be segmented, left out and listed in the end: the others are not lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, list_data_collate

from ..errors import InputError, check_switches, input_error_in, listed

_logger = logging.getLogger(__name__)


class _Failure(NamedTuple):
    sentence: str


class SkippingDataset(Dataset):
    """MONAI's dataset, in which an image that raises an `InputError` does not end the run.

    Only for a `SkippingDataLoader`, which knows what stands in such an image's place.

    Args:
        data, transform: as for MONAI's.
        strict: let it end the run.

    Raises:
        InputError: strict is neither True nor False.
    """

    def __init__(self, data: Sequence[Any], transform: Any = None, strict: bool = False) -> None:
        super().__init__(data, transform)
        check_switches(strict=strict)
        self.strict = strict

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            sentence = input_error_in(error)  # MONAI wraps what its transforms raise
            if sentence is None or self.strict:
                raise
            return _Failure(sentence)


class SkippingDataLoader(DataLoader):
    """MONAI's data loader, without what failed in a `SkippingDataset`.

    As a handler of the engine that it feeds it ends the epoch where its batches end, which are
    fewer than its length then. `check` tells in the end what was left out.
    """

    def __init__(self, dataset: SkippingDataset, **kwargs: Any) -> None:
        super().__init__(dataset, collate_fn=_collate, **kwargs)
        self.failures: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        self.failures = []
        for batch, failures in super().__iter__():
            for sentence in failures:
                _logger.error("Left out: %s", sentence)
            self.failures += failures
            if batch is not None:
                yield batch

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, engine.terminate_epoch)

    def check(self) -> None:
        """Raise what failed.

        Raises:
            InputError: there was something; it names the first 20.
        """
        if not self.failures:
            return
        raise InputError(
            f"{len(self.failures)} of {len(self.dataset)} images were left out, the others are "
            f"done: {listed(self.failures)}"
        )


def _collate(items: Sequence[Any]) -> tuple[Any, list[str]]:
    failures = [item.sentence for item in items if isinstance(item, _Failure)]
    good = [item for item in items if not isinstance(item, _Failure)]
    return (list_data_collate(good) if good else None), failures
