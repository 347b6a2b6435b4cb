"""Seconds and memory of an evaluation, over more and more cases.

    python -m benchmarks.evaluate [--cases 200] [--size 256 256 100] [--threads 2]

Cases are a liver, an ellipsoid that is 4 to 6 tenths of the image along each axis, with three
tumours in it; the prediction's are a few voxels aside. A quarter, half and all of the cases are
evaluated, each in a process of its own; liver and tumour, and the tumours as lesions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from common.cli.output import say, table
from common.evaluation import evaluate
from common.measure import in_own_process, machine, peak_memory

MIB = 2**20
AFFINE = np.diag([0.8, 0.8, 2.5, 1.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--size", type=int, nargs=3, default=[256, 256, 100])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        parts = sorted({max(1, options.cases * part // 4) for part in (1, 2, 4)})
        write(Path(folder), options.cases, options.size)
        for cases in parts:
            peak, seconds = in_own_process(
                measured, folder, cases, options.threads, preload=["benchmarks.evaluate"]
            )
            figures = [f"{seconds:.3g}", f"{seconds / cases:.3g}", f"{peak / MIB:.0f}"]
            rows.append([str(cases), *figures])
    size = " x ".join(map(str, options.size))
    say(f"Evaluation of label maps of {size}. {machine('cpu', options.threads)}\n")
    say(table(("cases", "seconds", "seconds a case", "peak MiB"), rows))


def write(folder: Path, cases: int, size: Sequence[int]) -> None:
    random = np.random.default_rng(0)
    for part in ("labels", "predictions"):
        (folder / part).mkdir()
    for case in tqdm(range(cases), desc="label maps", disable=None):
        liver, middle = random.uniform(0.2, 0.3, 3) * size, np.array(size) / 2
        tumours = [
            (random.uniform(0.02, 0.08, 3) * size, middle + random.uniform(-0.5, 0.5, 3) * liver)
            for _ in range(3)
        ]
        for part, aside in (("labels", 0.0), ("predictions", 1.5)):
            values = np.zeros(size, np.uint8)
            for value, (radii, centre) in ((1, (liver, middle)), *((2, one) for one in tumours)):
                fill(values, value, radii, centre + aside)
            nib.save(nib.Nifti1Image(values, AFFINE), folder / part / f"case_{case:03d}.nii.gz")


def fill(
    values: NDArray[np.uint8], value: int, radii: NDArray[np.float64], centre: NDArray[np.float64]
) -> None:
    """Give an ellipsoid's voxels a value."""
    low = np.maximum(centre - radii, 0).astype(int)
    high = np.minimum(centre + radii + 2, values.shape).astype(int)
    box = tuple(map(slice, low, high))
    axes = np.ogrid[box]
    inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radii, strict=True)) <= 1
    values[box][inside] = value


def measured(folder: str, cases: int, threads: int) -> tuple[int, float]:
    """Bytes at the peak beyond what the imports need, and seconds, of the first so many cases."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as some:
        for part in ("labels", "predictions"):
            Path(some, part).mkdir()
            for file in sorted(Path(folder, part).iterdir())[:cases]:
                Path(some, part, file.name).symlink_to(file)

        def run() -> None:
            evaluate(
                Path(some, "predictions"),
                Path(some, "labels"),
                Path(some, "results"),
                {"liver": [1, 2], "tumour": 2},
                lesions="tumour",
            )

        start = time.perf_counter()
        peak = peak_memory(run, "cpu")
        return peak, time.perf_counter() - start


if __name__ == "__main__":
    main()
