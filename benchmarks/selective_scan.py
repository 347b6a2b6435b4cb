"""Time and memory of every backend of the selective scan, at the shapes of the networks.

    python -m benchmarks.selective_scan [--device cuda] [--threads 2] [--quick]

Compared with: the sequential loop that defines the operation (the backend "reference"; its
forward only, for autograd through the loop is O(l^2): never a training baseline), mambapy's
parallel scan and mamba-ssm's kernel, the last two where they are importable. Every case and backend
has a process of its own. What would take long is measured on fewer tokens and scaled linearly;
its row is marked with ~.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from common.cli.output import say, table
from common.measure import (
    Failed,
    free_memory,
    in_own_process,
    machine,
    median_seconds,
    peak_memory,
    seconds,
)
from common.ops import BACKENDS, fastest_backend, selective_scan, why_not


class Case(NamedTuple):
    """A scan of u (batch, d, length) with n states per channel and groups of B and C."""

    name: str
    batch: int
    d: int
    length: int
    n: int
    groups: int = 1


# LightM-UNet has 32 * 2^i channels at level i, and its scans twice as many: at 128^3, 64 channels.
CASES = (
    Case("2D 64x64", 1, 192, 64**2, 16),
    Case("2D 64x64, batch 8", 8, 192, 64**2, 16),
    Case("3D 32^3", 1, 256, 32**3, 16),
    Case("3D 64^3", 1, 128, 64**3, 16),
    Case("3D 128^3", 1, 64, 128**3, 16),
    Case("2D 64x64, n=1, 4 orders", 1, 4 * 192, 64**2, 1, 4),
    Case("3D 64^3, n=1", 1, 128, 64**3, 1),
)
QUICK = tuple(case._replace(d=16, length=200) for case in (CASES[0], CASES[-1]))


class Result(NamedTuple):
    """Seconds of the whole case, scaled where only `tokens` of it were run."""

    forward: float
    both: float | None  # forward and backward; None for the loop
    memory: float | None  # peak of both, as a ratio to inputs, outputs and all their gradients
    tokens: int
    bandwidth: float | None  # of the forward, as a fraction of a triad's; where n = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    options = parser.parse_args()
    device, threads = options.device, options.threads
    cases, budget = (QUICK, 0.02) if options.quick else (CASES, 1.0)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")

    found: dict[tuple[str, str], Result] = {}
    failures: dict[tuple[str, str], str] = {}
    names = contenders(device)
    jobs = tqdm([(case, name) for case in cases for name in names], desc="selective scan")
    for case, name in jobs:
        jobs.set_postfix_str(f"{case.name}: {name}")
        try:
            found[case.name, name] = in_own_process(
                measure, case, name, device, threads, budget, preload=["torch", "common.ops"]
            )
        except Failed as failure:
            failures[case.name, name] = str(failure)

    say(f"On {machine(device, threads)}:\n")
    say(report(cases, names, found, failures, threads if device == "cpu" else 1))
    say(
        "\nloop/, pscan/ and ssm/: how many times longer the sequential loop, mambapy's pscan and "
        "mamba-ssm take.\nG/s: 1e9 states per second and core (or GPU) of the forward pass. "
        "triad: bandwidth of the forward pass, u, delta, B, C, z\nand y once each, relative to "
        "a = b + 3 c. memory: peak of forward and backward, relative to inputs, output and all "
        "gradients.\n~: measured on fewer tokens, scaled linearly.\n"
    )
    ours = fastest_backend(device, torch.float32)
    say(f'Goals for backend="auto", which is "{ours}" here:\n')
    say(table(("goal", "needed", "measured", ""), goals(device, threads, ours, cases, found)))
    if options.quick:
        say("\nThese shapes are small: only the full run says something about the goals.")


def contenders(device: str) -> list[str]:
    """Our backends that serve float32 on this device, and the packages that are importable."""
    ours = [b for b in BACKENDS[1:] if why_not(b, device, torch.float32) is None]
    theirs = {"mambapy": "mambapy"} | ({"mamba-ssm": "mamba_ssm"} if device == "cuda" else {})
    for name, module in theirs.items():
        if importlib.util.find_spec(module) is None:
            say(f"{name} is not installed (pip install {name}), so it is not compared with.")
    return ours + [name for name, module in theirs.items() if importlib.util.find_spec(module)]


def scan_of(name: str) -> Callable[..., Tensor]:
    """The scan of a contender, called with the tensors that `make_inputs` returns."""
    if name == "mambapy":
        return mambapy_scan
    if name == "mamba-ssm":
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

        return partial(selective_scan_fn, delta_softplus=True)
    return partial(selective_scan, delta_softplus=True, backend=name)


def mambapy_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """The same operation around mambapy's pscan of all decays and inputs, (b, l, d, n)."""
    from mambapy.pscan import pscan

    def per_channel(maps: Tensor) -> Tensor:
        maps = maps.permute(0, 3, 1, 2)  # (b, l, g, n); one group broadcasts over the channels
        return (
            maps if maps.shape[2] == 1 else maps.repeat_interleave(u.shape[1] // maps.shape[2], 2)
        )

    steps = F.softplus(delta.mT + delta_bias)
    h = pscan(torch.exp(steps.unsqueeze(-1) * A), (steps * u.mT).unsqueeze(-1) * per_channel(B))
    y = (h * per_channel(C)).sum(-1) + D * u.mT
    return (y * F.silu(z.mT)).mT


def make_inputs(case: Case, length: int, device: str, length_last: bool) -> dict[str, Tensor]:
    """Tokens channels-last, as the networks give them, or (b, d, l) contiguous for mamba-ssm."""
    torch.manual_seed(0)
    batch, d, n, groups = case.batch, case.d, case.n, case.groups

    def tokens(*channels: int) -> Tensor:
        if length_last:
            return torch.randn(batch, *channels, length, device=device)
        return torch.randn(batch, length, *channels, device=device).movedim(1, -1)

    inputs = {
        "u": tokens(d),
        "delta": tokens(d).sub_(3),
        "A": -torch.arange(1.0, n + 1, device=device).repeat(d, 1),
        "B": tokens(groups, n),
        "C": tokens(groups, n),
        "D": torch.ones(d, device=device),
        "z": tokens(d),
        "delta_bias": torch.randn(d, device=device),
    }
    return {name: x.requires_grad_() for name, x in inputs.items()}


def measure(case: Case, name: str, device: str, threads: int, budget: float) -> Result:
    torch.set_num_threads(threads)
    _refuse_what_cannot_fit(case, name, device)
    scan, length_last = scan_of(name), name in ("mamba-ssm", "mamba_ssm")

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return scan(**inputs)

    def both(inputs: dict[str, Tensor], dy: Tensor) -> tuple[Tensor, ...]:
        y = scan(**inputs)
        return (y, *torch.autograd.grad(y, list(inputs.values()), dy))

    def from_nothing(length: int) -> int:
        """Bytes of inputs, output and gradients, all of them alive in the end."""
        inputs = make_inputs(case, length, device, length_last)
        dy = torch.randn_like(inputs["u"])
        return sum(x.nbytes for x in (*inputs.values(), dy, *both(inputs, dy)))

    # Once on few tokens: a warm-up, and how many are worth waiting for.
    tokens = min(case.length, 512)
    short = make_inputs(case, tokens, device, length_last)
    forward(short)
    whole = min(seconds(lambda: forward(short), device) for _ in range(3)) * case.length / tokens
    tokens = max(tokens, int(case.length * min(1, budget / whole)))

    memory = None
    if name != "reference":
        from_nothing(min(case.length, 512))
        kept: list[int] = []
        memory = peak_memory(lambda: kept.append(from_nothing(tokens)), device) / kept[0]
    inputs = make_inputs(case, tokens, device, length_last)
    scale = case.length / tokens
    time = median_seconds(lambda: forward(inputs), device, budget)
    bandwidth = time_of_both = None
    if case.n == 1:  # with more states it is arithmetic that takes the time
        moved = sum(inputs[x].nbytes for x in ("u", "delta", "B", "C", "z")) + inputs["u"].nbytes
        bandwidth = moved / time / _triad(device)
    if name != "reference":
        dy = torch.randn_like(inputs["u"])
        time_of_both = scale * median_seconds(lambda: both(inputs, dy), device, budget)
    return Result(scale * time, time_of_both, memory, tokens, bandwidth)


def _refuse_what_cannot_fit(case: Case, name: str, device: str) -> None:
    if name == "mambapy":
        padded = 2 ** (case.length - 1).bit_length()
        # Decays and inputs, their copies that the scan overwrites, and in the backward pass the
        # saved ones, the decays shifted, and the gradients of both.
        needed = 8 * 4 * case.batch * padded * case.d * case.n
        free = free_memory(device)
        if free is not None and needed > free:
            raise Failed(f"needs {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free")


def _triad(device: str) -> float:
    """Bytes per second of a = b + 3 c, well beyond the caches."""
    a, b, c = (torch.ones(2**26, device=device) for _ in range(3))
    return 3 * a.nbytes / median_seconds(lambda: torch.add(b, c, alpha=3, out=a), device, 0.2)


def report(
    cases: tuple[Case, ...],
    names: list[str],
    found: dict[tuple[str, str], Result],
    failures: dict[tuple[str, str], str],
    cores: int,
) -> str:
    header = "case,(b d l n),backend,forward ms,fwd+bwd ms,loop/,pscan/,pscan/ f+b,ssm/,ssm/ f+b,"
    rows: list[list[str]] = []
    for case in cases:
        shape = f"{case.batch} {case.d} {case.length} {case.n}"
        for name in names:
            if (case.name, name) in failures:
                rows.append([case.name, shape, name, failures[case.name, name]])
                continue
            result = found[case.name, name]
            shortened = "~" if result.tokens < case.length else ""
            states = case.batch * case.d * case.length * case.n
            rows.append(
                [
                    case.name,
                    shape,
                    name + shortened,
                    f"{1e3 * result.forward:.3g}",
                    "" if result.both is None else f"{1e3 * result.both:.3g}",
                    *(
                        _number(times_faster(found, case, name, other, both))
                        for other, both in (
                            ("reference", False),
                            ("mambapy", False),
                            ("mambapy", True),
                            ("mamba-ssm", False),
                            ("mamba-ssm", True),
                        )
                    ),
                    f"{states / result.forward / cores / 1e9:.2f}",
                    "" if result.bandwidth is None else f"{result.bandwidth:.0%}",
                    _number(result.memory),
                ]
            )
    return table((header + "G/s,triad,memory").split(","), rows)


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def times_faster(
    found: dict[tuple[str, str], Result], case: Case, name: str, other: str, both: bool
) -> float | None:
    """The other's time over this one's; None where one of them was not measured."""
    field = "both" if both else "forward"
    times = [getattr(found.get((case.name, x)), field, None) for x in (other, name)]
    return None if None in times else times[0] / times[1]


def goals(
    device: str,
    threads: int,
    ours: str,
    cases: tuple[Case, ...],
    found: dict[tuple[str, str], Result],
) -> list[list[str]]:
    """The design's goals beside what was measured; of several cases, the worst counts."""
    rows: list[list[str]] = []
    Value = Callable[[Case, Result], float | None]

    def goal(
        what: str, sign: str, needed: float, value: Value, chosen: Callable[[Case], bool]
    ) -> None:
        pairs = ((case, found.get((case.name, ours))) for case in cases if chosen(case))
        values = [value(case, result) for case, result in pairs if result is not None]
        measured = [x for x in values if x is not None]
        if not measured:
            rows.append([what, f"{sign} {needed:g}", "", "not measured"])
            return
        worst = max(measured) if sign == "<=" else min(measured)
        met = worst <= needed if sign == "<=" else worst >= needed
        rows.append([what, f"{sign} {needed:g}", _number(worst), "met" if met else "NOT met"])

    def faster(other: str, both: bool) -> Value:
        return lambda case, _: times_faster(found, case, ours, other, both)

    def rate(case: Case, result: Result) -> float:
        return case.batch * case.d * case.length * case.n / result.forward / threads / 1e9

    def every(case: Case) -> bool:
        return True

    def first(case: Case) -> bool:
        return case.name == cases[0].name

    def of_width(least: int, most: float, length: int = 1) -> Callable[[Case], bool]:
        return lambda case: (
            case.n == 16 and least <= case.batch * case.d <= most and case.length >= length
        )

    goal("peak memory of forward + backward", "<=", 1.3, lambda _, result: result.memory, every)
    if device == "cpu":
        name = cases[0].name
        goal(f"{name}: forward, G states/s per core", ">=", 6, rate, first)
        goal(f"{name}: forward, times the loop", ">=", 400, faster("reference", False), first)
        goal(f"{name}: forward, times mambapy", ">=", 100, faster("mambapy", False), first)
        goal(
            "forward + backward, times our forward",
            "<=",
            3,
            lambda _, result: None if result.both is None else result.both / result.forward,
            every,
        )
        goal(
            "n=1, l >= 262144: forward's bandwidth over a triad's",
            ">=",
            0.6,
            lambda _, result: result.bandwidth,
            lambda case: case.length >= 64**3,
        )
    else:
        ssm, what = faster("mamba-ssm", True), "forward + backward, times mamba-ssm"
        goal(f"{what}: b d <= 128, l >= 262144", ">=", 5, ssm, of_width(1, 128, 64**3))
        goal(f"{what}: b d from 256 to 384", ">=", 2.5, ssm, of_width(256, 384))
        goal(f"{what}: b d >= 1024", ">=", 1, ssm, of_width(1024, float("inf")))
    return rows


if __name__ == "__main__":
    main()
