"""What a data set is, however its folder is laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypedDict

Split = Literal["training", "validation", "test"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")

Image = str | list[str]  # a file, or one file per channel


class Case(TypedDict):
    """One labelled case; several image files are its channels, several label files its masks."""

    image: Image
    label: str | list[str]


class DataSet(NamedTuple):
    """The cases of a data set, and what it says of itself.

    Attributes:
        layout: what its layout is called.
        cases: the labelled ones, sorted by name.
        images: those without a label: to segment.
        parts: where it comes split, its parts; not every one has to be there.
        label_values: the values of each class; several are a region's.
        ignore_label: the value of voxels that count neither for nor against (nnU-Net's "ignore").
        notes: what is odd but no error, each a sentence for the log.
        folds: where it comes in folds, that of each of `cases`; a case of none always trains.
        channel_names: what each channel is.
    """

    layout: str
    cases: list[Case]
    images: list[Image]
    parts: dict[Split, list[Case]] | None = None
    label_values: dict[str, int | list[int]] | None = None
    ignore_label: int | None = None
    notes: Sequence[str] = ()
    folds: list[int | None] | None = None
    channel_names: list[str] | None = None
