"""Studies: bundles trained, evaluated and compared, on one data set, from one file."""

from .run import run_study

__all__ = ["run_study"]
