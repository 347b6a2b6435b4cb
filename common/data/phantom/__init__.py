"""Synthetic data sets for demonstrations and tests, drawn from anatomy and a seed."""

from .ct import CTCase, Tissue, ct_case
from .cxr import CXRCase, cxr_case
from .dataset import write_phantom

__all__ = ["CTCase", "CXRCase", "Tissue", "ct_case", "cxr_case", "write_phantom"]
