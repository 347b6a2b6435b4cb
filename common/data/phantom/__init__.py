"""Synthetic data sets for demonstrations and tests, drawn from anatomy and a seed."""

from .ct import CTCase, Tissue, ct_case
from .cxr import CXRCase, cxr_case
from .dataset import write_phantom
from .mr import MRCase, mr_case

__all__ = [
    "CTCase",
    "CXRCase",
    "MRCase",
    "Tissue",
    "ct_case",
    "cxr_case",
    "mr_case",
    "write_phantom",
]
