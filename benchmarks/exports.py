"""Every network of the collection in every form that it is exported to.

    python -m benchmarks.exports [--size 64 64 64] [--size_2d 128 128] [--only LightMUNet-3D]
        [--forms onnx] [--threads 2]

Networks of the bundles' sizes, untrained, one channel in, float32, on the CPU; each has a process
of its own. The difference is a logit's largest from the network in float64, for an image of
noise. Seconds are those of the whole: tracing, converting, writing, reading back, and the check.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from common import networks
from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine
from common.workflows import FORMS, export_network

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "LightMUNet-2D": lambda: networks.LightMUNet(2, 1, 2),
    "LightMUNet-3D": lambda: networks.LightMUNet(3, 1, 3),
    "MambaClinix": lambda: networks.MambaClinix(1, 3),
    "LCMambaNet": lambda: networks.LCMambaNet("T", 1, 3),
    "CodebookMambaUNet": lambda: networks.CodebookMambaUNet(1, 2),
    "ELANResMSCAUNet": lambda: networks.ELANResMSCAUNet(1, 1),
    "UMambaBot": lambda: networks.UMamba(3, 1, 14),
    "UMambaEnc-1": lambda: networks.UMamba(3, 1, 14, "encoder", release=1),
    "VMUNet": lambda: networks.VMUNet(3, 1),
    "SwinUMamba": lambda: networks.SwinUMamba(1, 14),
    "SwinUMambaD": lambda: networks.SwinUMamba(1, 14, "mamba"),
    "SegMamba": lambda: networks.SegMamba(4, 3),
}
_2D = ("LightMUNet-2D", "LCMambaNet", "VMUNet", "SwinUMamba", "SwinUMambaD")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--size_2d", type=int, nargs=2, default=[128, 128])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()

    rows = []
    jobs = tqdm([(name, form) for name in options.only for form in options.forms], desc="exports")
    for name, form in jobs:
        jobs.set_postfix_str(f"{name}: {form}")
        size = options.size_2d if name in _2D else options.size
        try:
            difference, seconds, megabytes = in_own_process(
                export, name, form, size, options.threads, preload=["benchmarks.exports"]
            )
        except Failed as failure:
            rows.append([name, form, str(failure)])
            continue
        image = " x ".join(map(str, size))
        rows.append([name, form, image, f"{difference:.1e}", f"{seconds:.1f}", f"{megabytes:.1f}"])
    say(f"Exports on {machine('cpu', options.threads)}:\n")
    say(table(("network", "form", "image", "largest difference", "seconds", "MB"), rows))


def export(name: str, form: str, size: list[int], threads: int) -> tuple[float, float, float]:
    """The largest difference, seconds, and the file's size in MB."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    network = NETWORKS[name]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model"
        start = time.perf_counter()
        difference = export_network(network, size, form, file)
        return difference, time.perf_counter() - start, file.stat().st_size / 1e6


if __name__ == "__main__":
    main()
