"""Data lists and splits, writers, and synthetic data."""

from .ircadb import write_ircadb
from .layouts import find_cases, image_files, label_names, labelled_cases
from .outputs import OutputLayout, check_output_folder
from .skipping import SkippingDataLoader, SkippingDataset
from .splits import split_cases
from .writers import AtomicNibabelWriter, AtomicPILWriter

__all__ = [
    "AtomicNibabelWriter",
    "AtomicPILWriter",
    "OutputLayout",
    "SkippingDataLoader",
    "SkippingDataset",
    "check_output_folder",
    "find_cases",
    "image_files",
    "label_names",
    "labelled_cases",
    "split_cases",
    "write_ircadb",
]
