"""What a task of a cluster runs: python -m common.workflows.segmentation TASK."""

import sys

from ...errors import InputError
from .cluster import run_task

if __name__ == "__main__":
    try:
        run_task(sys.argv[1])
    except InputError as error:
        sys.exit(f"error: {error}")
