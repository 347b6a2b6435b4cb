"""Time, arithmetic and memory of every network of the collection beside MONAI's, in one run.

    python -m benchmarks.networks [--size 96 96 96] [--batch 1] [--only LightMUNet SegResNet]
        [--device cuda] [--threads 2] [--rounds 3] [--precision bfloat16] [--checkpointing]
        [--mixer identity]

Images of one channel in, three classes out, in float32 or under autocast to a shorter precision. A
forward pass is in eval mode without gradients; a training step is forward, Dice and cross-entropy
loss of the finest logits, backward and AdamW; with --checkpointing, levels are computed again for
the backward pass. Each has a process of its own, and the networks take turns for `--rounds` rounds,
so that what slows the machine down for a while slows all of them. With a shorter precision, the
table says how far it moves the logits. --mixer puts something else in Mamba's place, in networks
that have it. docs/networks.md's tables are `benchmarks.catalogue`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple, get_args

import torch
from monai.losses import DiceCELoss
from monai.networks import nets
from torch import Tensor, nn
from tqdm import tqdm

from common import networks
from common.blocks import Mixer
from common.cli.output import say, table
from common.measure import Failed, in_own_process, machine, median_seconds, peak_memory
from common.ops import WholeConvolutions, count_flops

CLASSES = 3
BASELINE = "SegResNet"
PRELOAD = ["monai.losses", "monai.networks.nets", "common.networks"]
# What is asked of LightMUNet on a CPU in float32: by size and batch, its forward pass and training
# step over the baseline's, and of both its memory in training.
GOALS = {((96, 96, 96), 1): (0.7, 1.0), ((256, 256), 4): (1.0, 1.3)}
MEMORY_GOAL = 1.3


Build = Callable[..., nn.Module]


def _of(dims: int, build: Build) -> Build:
    """The network, for sizes of so many axes alone."""

    def checked(size: list[int], **given: Any) -> nn.Module:
        if len(size) != dims:
            raise ValueError(f"it is for {dims}D images")
        return build(**given)

    return checked


# Name -> the network for images of a size; those with Mamba, for a mixer too.
WITH_MAMBA: dict[str, Build] = {
    "LightMUNet": lambda size, **given: networks.LightMUNet(
        len(size), 1, CLASSES, init_filters=32, **given
    ),
    "LCMambaNet": _of(2, lambda **given: networks.LCMambaNet("T", 1, CLASSES, **given)),
    "MambaClinix": _of(3, lambda **given: networks.MambaClinix(1, CLASSES, **given)),
    "CodebookMambaUNet": _of(3, lambda **given: networks.CodebookMambaUNet(1, CLASSES, **given)),
    "UMambaBot": lambda size, **given: networks.UMamba(len(size), 1, CLASSES, **given),
    "UMambaEnc": lambda size, **given: networks.UMamba(
        len(size), 1, CLASSES, "encoder", input_size=size, **given
    ),
    "VMUNet": _of(2, lambda **given: networks.VMUNet(1, CLASSES, **given)),
    "SwinUMamba": _of(2, lambda **given: networks.SwinUMamba(1, CLASSES, **given)),
    "SwinUMambaD": _of(2, lambda **given: networks.SwinUMamba(1, CLASSES, "mamba", **given)),
    "SegMamba": _of(3, lambda **given: networks.SegMamba(1, CLASSES, **given)),
}
COLLECTION: dict[str, Build] = WITH_MAMBA | {
    "ELANResMSCAUNet": _of(3, lambda: networks.ELANResMSCAUNet(1, CLASSES)),
    "ELANResMSCAUNetFolded": _of(3, lambda: networks.ELANResMSCAUNet(1, CLASSES).reparameterize()),
}
MONAI: dict[str, Build] = {
    "SegResNet": lambda size: nets.SegResNet(len(size), 32, 1, CLASSES),
    "SwinUNETR": lambda size: nets.SwinUNETR(1, CLASSES, feature_size=48, spatial_dims=len(size)),
    "UNETR": lambda size: nets.UNETR(1, CLASSES, size, spatial_dims=len(size)),
    "DynUNet": lambda size: nets.DynUNet(
        len(size), 1, CLASSES, [3] * 5, [1, 2, 2, 2, 2], upsample_kernel_size=[2] * 4
    ),
    "BasicUNet": lambda size: nets.BasicUNet(len(size), 1, CLASSES),
}
NETWORKS = COLLECTION | MONAI


def build(name: str, size: list[int], mixer: str = "mamba") -> nn.Module:
    """A network for images of a size, with a mixer in Mamba's place."""
    if mixer == "mamba":
        return NETWORKS[name](size)
    if name not in WITH_MAMBA:
        raise ValueError(f"it has no Mamba that {mixer} could replace")
    return WITH_MAMBA[name](size, mixer=mixer)


class Cost(NamedTuple):
    seconds: float
    memory: int  # peak, of the network, its activations and all else that it needs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[96, 96, 96], help="2D or 3D")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precision", choices=("float32", "float16", "bfloat16"), default="float32"
    )
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--mixer", choices=get_args(Mixer), default="mamba")
    options = parser.parse_args()
    if len(options.size) not in (2, 3):
        parser.error(f"--size has {len(options.size)} numbers; allowed are 2 and 3")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")

    run = Run(
        options.size,
        options.batch,
        options.device,
        options.threads,
        options.precision,
        options.checkpointing,
        options.mixer,
    )
    once = [count] if options.precision == "float32" else [count, moved]
    jobs = tqdm(
        [
            (step, name)
            for step in (*once, *[forward, train] * options.rounds)
            for name in options.only
        ],
        desc="networks",
    )
    for step, name in jobs:
        jobs.set_postfix_str(f"{name}: {step.__name__}")
        run.measure(step, name)

    images = _images(options.size, options.batch)
    how = f"{options.precision}{', checkpointing' if options.checkpointing else ''}"
    if options.mixer != "mamba":
        how += f", {options.mixer} in Mamba's place,"
    where = machine(options.device, options.threads)
    say(f"{images} in {how} on {where}:\n")
    say(run.report(options.only))
    say(
        f"\nforward, training: seconds, median of {options.rounds} rounds, and as a ratio to "
        f"{BASELINE}'s. GiB: peak memory, the network\nincluded, and with training its gradients "
        "and the optimiser's state. GFLOP: of a forward pass's matrix products,\nconvolutions and "
        "selective scans (7 per state and token), 2 per multiply-add."
    )
    if options.precision != "float32":
        say("logits moved: the largest difference to float32's, relative to the largest of these.")
    for line in goals(run):
        say(line)


def _images(size: Sequence[int], batch: int) -> str:
    return f"{batch} image(s) of {' x '.join(map(str, size))}"


def goals(run: Run) -> list[str]:
    """What is asked of LightMUNet, and what was measured; nothing of runs that no goal is of."""
    size, batch, device, _ = run.arguments
    case = (tuple(size), batch)
    if case not in GOALS or device != "cpu" or run.how != ("float32", False, "mamba"):
        return []
    forwards, training = GOALS[case]
    asked = [
        ("forward pass", forwards, run.ratio(forward, "LightMUNet")),
        ("training step", training, run.ratio(train, "LightMUNet")),
        ("memory in training", MEMORY_GOAL, run.memory_ratio(train, "LightMUNet")),
    ]
    lines = [
        f"  {what}: <= {most:g}, measured {ratio:.2f}, {'met' if ratio <= most else 'NOT met'}"
        for what, most, ratio in asked
        if ratio is not None
    ]
    of = _images(size, batch)
    return lines and [f"\nGoals for LightMUNet with {of}, over {BASELINE}'s:", *lines]


class Run:
    """What was measured of each network, and why what was not."""

    def __init__(
        self,
        size: list[int],
        batch: int,
        device: str,
        threads: int,
        precision: str = "float32",
        checkpointing: bool = False,
        mixer: str = "mamba",
    ) -> None:
        self.arguments = (size, batch, device, threads)
        self.mixer = mixer
        self.how = (precision, checkpointing, mixer)
        self.counts: dict[str, tuple[int, int]] = {}
        self.moved: dict[str, float] = {}  # where the precision is below float32
        self.costs: dict[tuple[Any, str], list[Cost]] = {}
        self.failures: dict[tuple[Any, str], str] = {}

    def measure(self, step: Callable[..., Any], name: str) -> None:
        if (count, name) in self.failures or (step, name) in self.failures:
            return
        try:
            found = in_own_process(
                step,
                name,
                *self.arguments,
                *self.options(step),
                preload=PRELOAD,
            )
        except Failed as failure:
            self.failures[step, name] = str(failure)
            return
        if step is count:
            self.counts[name] = found
        elif step is moved:
            self.moved[name] = found
        else:
            self.costs.setdefault((step, name), []).append(found)

    def options(self, step: Callable[..., Any]) -> tuple[Any, ...]:
        """What a step is told beyond the network, the images and the machine."""
        precision, _, mixer = self.how
        if step is count:
            return (mixer,)
        return (precision, mixer) if step is moved else self.how

    def report(self, names: list[str]) -> str:
        rows = []
        steps = [count, forward, train, *([moved] if self.how[0] != "float32" else [])]
        for name in names:
            row = [name]
            for step in steps:
                if (step, name) in self.failures:
                    row.append(self.failures[step, name])
                    break
                row += self.cells(step, name)
            rows.append(row)
        ratio = f"/{BASELINE}"
        header = (
            *("network", "M parameters", "GFLOP"),
            *("forward", ratio, "GiB"),
            *("training", ratio, "GiB"),
            *(["logits moved"] if moved in steps else []),
        )
        return table(header, rows)

    def cells(self, step: Callable[..., Any], name: str) -> list[str]:
        if step is count:
            parameters, flops = self.counts[name]
            return [f"{parameters / 1e6:.2f}", f"{flops / 1e9:.1f}"]
        if step is moved:
            return [f"{self.moved[name]:.2g}"]
        ratio = self.ratio(step, name)
        return [
            f"{self.seconds(step, name):.3g}",
            "" if ratio is None else f"{ratio:.2f}",
            f"{self.memory(step, name) / 2**30:.2f}",
        ]

    def seconds(self, step: Callable[..., Any], name: str) -> float:
        return median(cost.seconds for cost in self.costs[step, name])

    def memory(self, step: Callable[..., Any], name: str) -> float:
        return median(cost.memory for cost in self.costs[step, name])

    def ratio(self, step: Callable[..., Any], name: str) -> float | None:
        if (step, name) in self.costs and (step, BASELINE) in self.costs:
            return self.seconds(step, name) / self.seconds(step, BASELINE)
        return None

    def memory_ratio(self, step: Callable[..., Any], name: str) -> float | None:
        if (step, name) in self.costs and (step, BASELINE) in self.costs:
            return self.memory(step, name) / self.memory(step, BASELINE)
        return None


def count(
    name: str, size: list[int], batch: int, device: str, threads: int, mixer: str = "mamba"
) -> tuple[int, int]:
    """Parameters, and FLOPs of a forward pass."""
    network = build(name, size, mixer)
    parameters = sum(p.numel() for p in network.parameters())
    return parameters, count_flops(network, (batch, 1, *size))


def moved(
    name: str,
    size: list[int],
    batch: int,
    device: str,
    threads: int,
    precision: str,
    mixer: str = "mamba",
) -> float:
    """How far the precision moves logits at the initial weights."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    network = build(name, size, mixer).to(device).eval()
    return logits_moved(
        network, torch.randn(batch, 1, *size, device=device), getattr(torch, precision)
    )


def forward(
    name: str,
    size: list[int],
    batch: int,
    device: str,
    threads: int,
    precision: str = "float32",
    checkpointing: bool = False,
    mixer: str = "mamba",
) -> Cost:
    def prepare(network: nn.Module, image: Tensor) -> Callable[[], Any]:
        network.eval()

        def run() -> Tensor:
            with torch.no_grad():
                return logits(network, image, getattr(torch, precision))

        return run

    return _cost(prepare, name, size, batch, device, threads, checkpointing, mixer)


def train(
    name: str,
    size: list[int],
    batch: int,
    device: str,
    threads: int,
    precision: str = "float32",
    checkpointing: bool = False,
    mixer: str = "mamba",
) -> Cost:
    def prepare(network: nn.Module, image: Tensor) -> Callable[[], Any]:
        network.train()
        return training_step(network, image, getattr(torch, precision))

    return _cost(prepare, name, size, batch, device, threads, checkpointing, mixer)


def training_step(
    network: nn.Module, image: Tensor, precision: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """What does a training step of random labels, and returns its loss."""
    device = image.device.type
    label = torch.randint(CLASSES, image.shape, device=device)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.AdamW(network.parameters())
    scaler = torch.amp.GradScaler(device, enabled=precision == torch.float16)

    def run() -> Tensor:
        optimiser.zero_grad()
        loss = loss_of(logits(network, image, precision).float(), label)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        return loss.detach()

    return run


def logits(network: nn.Module, image: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """The finest, under autocast to a precision below float32."""
    shorter = precision != torch.float32
    with torch.autocast(image.device.type, precision, enabled=shorter), WholeConvolutions():
        output = network(image)
    return output if isinstance(output, Tensor) else output[0]


def logits_moved(network: nn.Module, image: Tensor, precision: torch.dtype) -> float:
    """The largest difference to float32's logits, relative to the largest of these."""
    with torch.no_grad():
        exact = logits(network, image)
        found = logits(network, image, precision).float()
    return float((found - exact).abs().max() / exact.abs().max())


def _cost(
    prepare: Callable[[nn.Module, Tensor], Callable[[], Any]],
    name: str,
    size: list[int],
    batch: int,
    device: str,
    threads: int,
    checkpointing: bool,
    mixer: str,
) -> Cost:
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    convolution = nn.Conv2d(1, CLASSES, 3, padding=1).to(device)
    prepare(convolution, torch.randn(1, 1, 8, 8, device=device))()  # loads what all have in common
    runs: list[Callable[[], Any]] = []

    def first() -> None:
        network = build(name, size, mixer).to(device)
        networks.recompute_levels(network, checkpointing)
        runs.append(prepare(network, torch.randn(batch, 1, *size, device=device)))
        runs[0]()

    memory = peak_memory(first, device)
    return Cost(median_seconds(runs[0], device, budget=1.0), memory)


if __name__ == "__main__":
    main()
