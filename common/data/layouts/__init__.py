"""Where the cases of a data set are, however its folder is laid out."""

from .find import find_cases, image_files, labelled_cases, require_cases, say_once
from .names import case_key, case_names, distinct_names, told_apart
from .stated import label_names, named_classes
from .types import SPLITS, Case, DataSet, Image, Split

__all__ = [
    "SPLITS",
    "Case",
    "DataSet",
    "Image",
    "Split",
    "case_key",
    "case_names",
    "distinct_names",
    "find_cases",
    "image_files",
    "label_names",
    "labelled_cases",
    "named_classes",
    "require_cases",
    "say_once",
    "told_apart",
]
