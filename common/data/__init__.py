"""Data lists and splits, writers, and synthetic data."""

from .cases import check_output_folder, image_files, labelled_cases, split_cases
from .ircadb import write_ircadb
from .outputs import OutputLayout
from .skipping import SkippingDataLoader, SkippingDataset
from .writers import AtomicNibabelWriter, AtomicPILWriter

__all__ = [
    "AtomicNibabelWriter",
    "AtomicPILWriter",
    "OutputLayout",
    "SkippingDataLoader",
    "SkippingDataset",
    "check_output_folder",
    "image_files",
    "labelled_cases",
    "split_cases",
    "write_ircadb",
]
