"""How far each network in float32 is from itself in float64, at its bundle's patch size.

    python -m benchmarks.accuracy [--only LightMUNet LCMambaNet] [--size 96 80 80]
        [--threads 1 2 4] [--gradients]

Initial weights, an image of noise. Logits, in training mode as in eval mode, by the largest
difference, as a part of the largest logit; gradients of cross entropy by the norm of the
difference, as a part of their norm. Networks are narrower here than in their bundles, but for
LCMambaNet: at the bundles' patch sizes, float64 would take hours of the wider ones. Those without a
bundle have the patch of their paper's main experiment.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers import DropPath
from torch import Tensor, nn
from tqdm import tqdm

from common import networks
from common.cli.output import say, table
from common.measure import machine

CLASSES = 3


def _umamba(variant: Literal["bottleneck", "encoder"], release: Literal[1, 2]) -> nn.Module:
    """With the kernels and strides of its paper's plan for CT."""
    return networks.UMamba(
        3,
        1,
        CLASSES,
        variant,
        release,
        features=(4, 8, 16, 32, 40, 40),
        kernel_sizes=[[1, 3, 3], *[[3, 3, 3]] * 5],
        strides=[[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3, [1, 2, 2]],
    )


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    patch: tuple[int, ...]


CASES = {
    "LightMUNet": Case(lambda: networks.LightMUNet(3, 1, CLASSES, 8), (128, 128, 128)),
    "LightMUNet-2D": Case(lambda: networks.LightMUNet(2, 1, CLASSES, 8), (512, 512)),
    "LCMambaNet": Case(lambda: networks.LCMambaNet("T", 1, CLASSES), (256, 256)),
    "MambaClinix": Case(
        lambda: networks.MambaClinix(
            1, CLASSES, (4, 8, 16, 32, 40, 40), [[1] * 3, *[[2] * 3] * 4, [2, 2, 1]]
        ),
        (192, 192, 64),
    ),
    "CodebookMambaUNet": Case(
        lambda: networks.CodebookMambaUNet(1, CLASSES, (4, 6, 12, 16), prototype_dim=16),
        (256, 256, 48),
    ),
    "ELANResMSCAUNet": Case(
        lambda: networks.ELANResMSCAUNet(1, CLASSES, (4, 8, 16, 32, 64)), (128, 128, 64)
    ),
    "UMambaBot": Case(lambda: _umamba("bottleneck", 2), (40, 224, 192)),
    # Release 2's takes one size.
    "UMambaEnc-1": Case(lambda: _umamba("encoder", 1), (40, 224, 192)),
    "VMUNet": Case(lambda: networks.VMUNet(1, CLASSES, features=(32, 64, 128, 256)), (256, 256)),
    "SwinUMamba": Case(
        lambda: networks.SwinUMamba(1, CLASSES, features=(16, 32, 64, 128)), (320, 320)
    ),
    "SwinUMambaD": Case(
        lambda: networks.SwinUMamba(1, CLASSES, "mamba", features=(16, 32, 64, 128)), (320, 320)
    ),
    "SegMamba": Case(
        lambda: networks.SegMamba(1, CLASSES, (1, 1, 1, 1), (4, 8, 16, 32), 64), (128, 128, 128)
    ),
}


class Result(NamedTuple):
    logits: Tensor
    gradients: list[Tensor]
    seconds: float


class Errors(NamedTuple):
    """Parts of the largest logit, and of the gradients' norm (0 where they were not asked for)."""

    logits: float
    gradients: float
    seconds: float  # of the float32 pass


def build(name: str) -> nn.Module:
    """The network of a case, without what is drawn anew at every pass, in training mode."""
    torch.manual_seed(0)
    network = CASES[name].build()
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return network.train()


def measure(
    name: str, size: Sequence[int], threads: Sequence[int], gradients: bool
) -> list[Errors]:
    """The errors of a network at an image size, with each number of threads."""
    network = build(name)
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    exact = _run(copy.deepcopy(network).double(), image.double(), gradients)
    errors = []
    try:
        for number in threads:
            torch.set_num_threads(number)
            found = _run(network, image, gradients)
            errors.append(
                Errors(_logits_error(found, exact), _gradients_error(found, exact), found.seconds)
            )
    finally:
        torch.set_num_threads(before)
    return errors


def _run(network: nn.Module, image: Tensor, gradients: bool) -> Result:
    begin = time.perf_counter()
    if not gradients:
        with torch.no_grad():
            logits = network(image)
            return Result(logits, [], time.perf_counter() - begin)
    network.zero_grad()
    output = network(image)
    logits = output if isinstance(output, Tensor) else output[0]
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(CLASSES, (1, *logits.shape[2:]), generator=generator)
    F.cross_entropy(logits, target).backward()
    found = [p.grad for p in network.parameters() if p.grad is not None]
    return Result(logits.detach(), found, time.perf_counter() - begin)


def _logits_error(found: Result, exact: Result) -> float:
    return float((found.logits - exact.logits).abs().max() / exact.logits.abs().max())


def _gradients_error(found: Result, exact: Result) -> float:
    if not exact.gradients:
        return 0.0
    pairs = list(zip(found.gradients, exact.gradients, strict=True))
    difference = sum(float((a - b).square().sum()) for a, b in pairs)
    return (difference / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--size", type=int, nargs="+", help="instead of the bundle's patch")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--gradients", action="store_true", help="a training step's too")
    options = parser.parse_args()

    rows = []
    for name in tqdm(options.only, desc="networks"):
        size = options.size or CASES[name].patch
        for number, errors in zip(
            options.threads,
            measure(name, size, options.threads, options.gradients),
            strict=True,
        ):
            gradient = f"{errors.gradients:.1e}" if options.gradients else "-"
            shown = " x ".join(map(str, size))
            found = [f"{errors.logits:.1e}", gradient, f"{errors.seconds:.1f}"]
            rows.append([name, shown, str(number), *found])
    say(f"On {machine('cpu', max(options.threads))}:\n")
    say(table(["network", "image", "threads", "logits", "gradients", "seconds"], rows))


if __name__ == "__main__":
    main()
