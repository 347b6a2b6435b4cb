"""Data lists and splits, writers, and synthetic data."""

from .caching import cached_dataset
from .ircadb import write_ircadb
from .layouts import find_cases, image_files, label_names, labelled_cases, named_classes
from .outputs import OutputLayout, check_output_folder
from .sampling import ValidationSampler
from .skipping import SkippingDataLoader, SkippingDataset
from .splits import disjoint_parts, split_cases
from .writers import AtomicNibabelWriter, AtomicPILWriter, ProbabilityWriter

__all__ = [
    "AtomicNibabelWriter",
    "AtomicPILWriter",
    "OutputLayout",
    "ProbabilityWriter",
    "SkippingDataLoader",
    "SkippingDataset",
    "ValidationSampler",
    "cached_dataset",
    "check_output_folder",
    "disjoint_parts",
    "find_cases",
    "image_files",
    "label_names",
    "labelled_cases",
    "named_classes",
    "split_cases",
    "write_ircadb",
]
