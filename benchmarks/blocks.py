"""Mamba against attention on the codebook's output: Codebook Mamba U-Net's table 3.

    python -m benchmarks.blocks [--batches 1 10] [--channels 64] [--size 16 16 3] [--device cuda]
        [--threads 2] [--rounds 3]

The two global mixers of `common.networks.CodebookMambaUNet`, each in a process of its own, in eval
mode without gradients, float32. The size is the bottleneck's at the paper's 256 x 256 x 48: its own
is lost in the text at hand. The paper's numbers, of an RTX 4080 Super, stand beside ours; its two
numbers of parameters are swapped: 16,640 are the attention's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from tqdm import tqdm

from common.blocks import MambaMixer
from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine, median_seconds, peak_memory
from common.networks.codebook_mamba_unet import AttentionMixer
from common.ops import count_flops

BLOCKS = {
    "Mamba": lambda channels: MambaMixer(channels),
    "attention": AttentionMixer,
}
# As printed: parameters, and by batch seconds of a sample and "M" of GPU memory.
PAPER = {
    "Mamba": (16640, {1: (91e-6, 8.24), 10: (96e-6, 8.66)}),
    "attention": (32768, {1: (193e-6, 8.36), 10: (320e-6, 8.74)}),
}
PRELOAD = ["common.networks"]
HEADER = (
    *("block", "parameters", "batch", "MFLOP", "us a batch", "us a sample", "MiB"),
    *("paper: parameters", "us a sample", "M"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=3, default=[16, 16, 3])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")

    jobs = [(name, batch) for name in BLOCKS for batch in options.batches]
    found: dict[tuple[str, int], list[tuple[int, int, float, int]]] = {job: [] for job in jobs}
    failures: dict[tuple[str, int], str] = {}
    for name, batch in tqdm(jobs * options.rounds, desc="blocks"):
        shape = [batch, options.channels, *options.size]
        try:
            cost = in_own_process(
                measure, name, shape, options.device, options.threads, preload=PRELOAD
            )
        except Failed as failure:
            failures[name, batch] = str(failure)
        else:
            found[name, batch].append(cost)

    size = " x ".join(map(str, options.size))
    say(f"{options.channels} channels of {size} on {machine(options.device, options.threads)}:\n")
    say(table(HEADER, [row(*job, found[job], failures.get(job)) for job in jobs]))
    say(
        f"\nus: median of {options.rounds} rounds. MiB: peak memory, the block and the batch "
        "included. MFLOP: of the batch, the\nselective scan's 7 per state and token among them, 2 "
        "per multiply-add. What the paper's M is, it does not say."
    )


def measure(name: str, shape: list[int], device: str, threads: int) -> tuple[int, int, float, int]:
    """Parameters, FLOPs, seconds of the batch, bytes at the peak."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    block = BLOCKS[name](shape[1]).eval()
    parameters = sum(p.numel() for p in block.parameters())
    flops = count_flops(block, shape)
    runs: list[Callable[[], torch.Tensor]] = []

    def first() -> None:
        own, x = BLOCKS[name](shape[1]).eval().to(device), torch.randn(shape, device=device)
        runs.append(lambda: own(x))
        own(x)

    with torch.no_grad():
        block.to(device)(torch.randn(shape, device=device))  # loads what all have in common
        memory = peak_memory(first, device)
        return parameters, flops, median_seconds(runs[0], device, budget=0.3), memory


def row(
    name: str, batch: int, costs: list[tuple[int, int, float, int]], failure: str | None
) -> list[str]:
    if failure is not None:
        return [name, failure]
    parameters, flops, *_ = costs[0]
    seconds, memory = (median(cost[i] for cost in costs) for i in (2, 3))
    cells = [f"{parameters:,}", str(batch), f"{flops / 1e6:.1f}"]
    cells += [f"{1e6 * seconds:.0f}", f"{1e6 * seconds / batch:.0f}"]
    of_paper, by_batch = PAPER[name]
    theirs = ["", ""]
    if batch in by_batch:
        theirs = [f"{1e6 * by_batch[batch][0]:.0f}", f"{by_batch[batch][1]:.2f}"]
    return [name, *cells, f"{memory / 2**20:.2f}", f"{of_paper:,}", *theirs]


if __name__ == "__main__":
    main()
