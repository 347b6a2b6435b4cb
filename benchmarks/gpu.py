"""All that is to be known of the collection on a GPU, by one command: checks, times and memory.

    python -m benchmarks.gpu [--output gpu.json] [--sources FILE ...] [--wheels DIR] [--quick]
        [--only tests scans maps blocks networks]

In this order: mamba-ssm and causal-conv1d are built for this GPU alone, where they are not
installed (from the package index, or from the files that are named), and beside it tests/ops run.
Then every backend's outputs and gradients are compared with float64's, and timed beside mamba-ssm:
the scan at the shapes of the networks, the scan of maps beside VMamba's four copies, the Mamba
block beside mamba-ssm's; and each network's training step beside SegResNet's, in float32 as torch
does it (convolutions in TF32), bfloat16 and float16. It writes one JSON file, and prints its
tables, which are Markdown. What cannot be measured has a row that says why.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.blocks import Mamba
from common.cli.output import say
from common.files import write_json
from common.measure import machine, median_seconds, peak_memory
from common.ops import selective_scan_2d

from . import networks
from . import selective_scan as scans

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"causal_conv1d": "causal-conv1d", "mamba_ssm": "mamba-ssm"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUDGET = 0.3  # seconds for a median
GIB = 2**30

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--sources", type=Path, nargs="*", default=[], help="of the two packages")
    parser.add_argument("--wheels", type=Path, help="a folder for what is built of them")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it runs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as executor:
        site = Path(folder) / "site"
        wheels = options.wheels or Path(folder) / "wheels"
        sys.path.insert(0, str(site))
        wheels.mkdir(parents=True, exist_ok=True)
        building = {
            package: executor.submit(build, module, package, site, wheels, options.sources)
            for module, package in PACKAGES.items()
        }
        found: dict[str, Any] = {"machine": machine("cuda", 1)}
        for part, measure in PARTS.items():
            if part not in options.only:
                continue
            if part != "tests" and "packages" not in found:
                found["packages"] = installed(building)
            say(f"\n## {part}, {time.strftime('%H:%M:%S')}\n")
            found[part] = []
            for row in measure(options.quick):
                found[part].append(row)
                write_json(options.output, found)
            say(markdown(found[part]))
        found["packages"] = installed(building)
        write_json(options.output, found)
    say(f"\nOn {found['machine']}; {found['packages']}.")


def build(module: str, package: str, site: Path, wheels: Path, sources: Sequence[Path]) -> str:
    """Build and install into `site` a package that is missing; what became of it."""
    if importlib.util.find_spec(module) is not None:
        return "was installed"
    start = time.perf_counter()
    try:
        if not (built := sorted(wheels.glob(f"{module}-*.whl"))):
            build_wheel(module, package, wheels, sources)
            built = sorted(wheels.glob(f"{module}-*.whl"))
        pip("install", "--no-deps", "--no-index", "--target", site, built[-1])
    except subprocess.CalledProcessError as error:
        return f"failed: {error.output[-2000:]}"
    importlib.invalidate_caches()
    return f"{built[-1].name}, {time.perf_counter() - start:.0f} s"


def build_wheel(module: str, package: str, wheels: Path, sources: Sequence[Path]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = [file for file in sources if file.name.startswith(module)]
        if not named:
            pip("download", "--no-deps", "--no-binary", package, "--no-build-isolation", "--dest",
                folder, package)  # fmt: skip
            named = list(Path(folder).glob("*.tar.gz"))
        with tarfile.open(named[0]) as archive:
            archive.extractall(folder, filter="data")
        setup = next(Path(folder).glob("*/setup.py"))
        capability = "".join(map(str, torch.cuda.get_device_capability()))
        setup.write_text(for_one_gpu(setup.read_text(), capability))
        pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, setup.parent)


def for_one_gpu(setup: str, capability: str) -> str:
    """Their setup.py without the other GPUs that it names, which would take most of the time."""
    target = r'cc_flag\.append\("-gencode"\)\s*cc_flag\.append\("arch=compute_(\d+),code=sm_\d+"\)'
    return re.sub(target, lambda m: m[0] if m[1] == capability else "pass", setup)


def pip(*words: object) -> None:
    environment = os.environ | {
        "MAMBA_FORCE_BUILD": "TRUE",
        "CAUSAL_CONV1D_FORCE_BUILD": "TRUE",
        "MAX_JOBS": str(max(1, (os.cpu_count() or 1) - 4)),
    }
    subprocess.run(
        [sys.executable, "-m", "pip", *map(str, words)],
        env=environment, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def installed(building: Mapping[str, Future[str]]) -> str:
    return "; ".join(f"{package}: {what.result()}" for package, what in building.items())


def attempt(row: Row, measure: Callable[[], Row]) -> Row:
    """The row with what was measured, or with why it was not."""
    try:
        return row | measure()
    except Exception as error:  # whatever it is becomes a row of the table
        said = (str(error).splitlines() or [""])[0]
        return row | {"failed": f"{type(error).__name__}: {said}"[:160]}
    finally:
        torch.cuda.empty_cache()


def measure_tests(quick: bool) -> Iterator[Row]:
    """What pytest says of the operators' tests; on this machine they take the GPU."""
    files = sorted((ROOT / "tests/ops").glob("test_*triton*.py"))
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider"]
    chosen = ["-m", "slow or not slow", "-k", "not compiles"]
    if importlib.util.find_spec("xdist"):
        chosen += ["--numprocesses", str(min(8, os.cpu_count() or 1))]
    done = subprocess.run(
        [*command, *chosen, *map(str, files)], cwd=ROOT, text=True, capture_output=True
    )
    lines = done.stdout.splitlines()
    said = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    yield from ({"tests": line} for line in [*said, *lines[-1:]])


def measure_scans(quick: bool) -> Iterator[Row]:
    names = ("triton", "mamba-ssm", "torch")
    for case in scans.QUICK if quick else scans.CASES:
        rows: dict[str, Row] = {}
        for name in names:
            row = {"scan": case.name, "b d l n": f"{case.batch} {case.d} {case.length} {case.n}"}
            row = rows[name] = attempt(row | {"backend": name}, partial(scan_row, case, name))
            if name == "mamba-ssm":
                ratio(rows["triton"], "mamba-ssm/", row)
            yield row


def ratio(ours: Row, name: str, theirs: Row) -> None:
    """Note with ours how many times longer theirs takes, where both were measured."""
    if "ms, both" in ours and "ms, both" in theirs:
        ours[name] = theirs["ms, both"] / ours["ms, both"]


def scan_row(case: scans.Case, name: str) -> Row:
    error = scan_error(case, name)
    cost = scans.measure(case, name, "cuda", 1, BUDGET)
    return {
        "error": error,
        "ms": 1e3 * cost.forward,
        "ms, both": 1e3 * (cost.both or float("nan")),
        "memory": cost.memory,
        "tokens": cost.tokens,
    }


def scan_error(case: scans.Case, name: str) -> float:
    """The largest relative distance of an output or gradient from float64's, on fewer tokens."""
    inputs = scans.make_inputs(case, min(case.length, 2**15), "cuda", name == "mamba-ssm")
    exact = {key: x.detach().double().requires_grad_() for key, x in inputs.items()}
    dy = torch.randn_like(inputs["u"])
    y = scans.scan_of(name)(**inputs)
    truth = scans.scan_of("torch")(**exact)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    expected = torch.autograd.grad(truth, list(exact.values()), dy.double())
    pairs = zip((y, *grads), (truth, *expected), strict=True)
    return max(distance(found, x) for found, x in pairs)


def distance(found: Tensor, exact: Tensor) -> float:
    found, exact = found.detach().double(), exact.detach()
    return float((found - exact).norm() / exact.norm())


def measure_maps(quick: bool) -> Iterator[Row]:
    """Of the levels of LCMambaNet-T at 256 x 256: (batch, channels, side)."""
    cases = [(1, 4, 8)] if quick else [(8, 192, 64), (8, 384, 32), (8, 768, 16), (8, 1536, 8)]
    for batch, d, side in cases:
        of = {"map": f"{batch} x {d} x {side} x {side}"}
        ours = attempt(of | {"by": "triton"}, partial(map_row, fused_maps, batch, d, side))
        yield ours
        by = {"by": "four copies, mamba-ssm"}
        theirs = attempt(of | by, partial(map_row, four_copies, batch, d, side))
        ratio(ours, "four copies/", theirs)
        yield theirs


def map_row(scan: Callable[..., Tensor], batch: int, d: int, side: int) -> Row:
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:  # channels-last, as the networks' maps are
        return torch.randn(batch, side, side, *shape, device="cuda").movedim((1, 2), (-2, -1))

    inputs = {
        "u": random(d),
        "delta": random(4, d) - 3,
        "A": -torch.ones(4, d, 1, device="cuda"),
        "B": random(4, 1),
        "C": random(4, 1),
        "D": torch.ones(4, d, device="cuda"),
        "delta_bias": torch.randn(4, d, device="cuda"),
    }
    if scan is four_copies:  # VMamba's projections give these in the orders, not in the map's
        for name in ("delta", "B", "C"):
            inputs[name] = inputs[name].flatten(3).contiguous()
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    dy = torch.randn_like(inputs["u"])

    def both() -> tuple[Tensor, ...]:
        y = scan(**inputs)
        return (y, *torch.autograd.grad(y, list(inputs.values()), dy))

    def forward() -> Tensor:
        with torch.no_grad():
            return scan(**inputs)

    row: Row = {}
    if scan is fused_maps:
        exact = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
        truth = selective_scan_2d(**exact, delta_softplus=True, backend="torch")
        expected = (truth, *torch.autograd.grad(truth, list(exact.values()), dy.double()))
        row["error"] = max(distance(a, b) for a, b in zip(both(), expected, strict=True))
    forward()  # compiles, as does the next
    both()
    row["MiB, both"] = peak_memory(both, "cuda") / 2**20
    row["ms"] = 1e3 * median_seconds(forward, "cuda", BUDGET)
    row["ms, both"] = 1e3 * median_seconds(both, "cuda", BUDGET)
    return row


def fused_maps(**inputs: Tensor) -> Tensor:
    return selective_scan_2d(**inputs, delta_softplus=True, backend="triton")


def four_copies(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """A copy of the map for each order, mamba-ssm's scan, and the four outputs' sum (VMamba)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    height, width = u.shape[2:]
    two = torch.stack((u.flatten(2), u.mT.flatten(2)), 1)
    sequences = torch.cat((two, two.flip(-1)), 1).flatten(1, 2)
    y = selective_scan_fn(
        sequences, delta.flatten(1, 2), A.flatten(0, 1), B, C, D.flatten(), None,
        delta_bias.flatten(), True,
    )  # fmt: skip
    there, back = y.unflatten(1, (4, -1)).chunk(2, 1)
    rows, columns = (there + back.flip(-1)).unbind(1)
    return rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).mT


def measure_blocks(quick: bool) -> Iterator[Row]:
    """Mamba blocks at LightM-UNet's levels of 128^3: (batch, tokens, channels)."""
    cases = [(1, 64, 8)] if quick else [(1, 128**3, 32), (1, 64**3, 64), (2, 32**3, 128),
                                        (2, 16**3, 256), (8, 64**2, 192)]  # fmt: skip
    for case in cases:
        for dtype in ("float32", "bfloat16"):
            of = {"block b l c": " ".join(map(str, case)), "autocast": dtype}
            ours = attempt(of | {"by": "ours"}, partial(block_row, "ours", dtype, case))
            yield ours
            name = "mamba-ssm"
            theirs = attempt(of | {"by": name}, partial(block_row, name, dtype, case))
            ratio(ours, "mamba-ssm/", theirs)
            yield theirs


def block_row(name: str, dtype: str, case: tuple[int, int, int]) -> Row:
    torch.manual_seed(0)
    batch, length, channels = case
    block: nn.Module = Mamba(channels).cuda()
    if name == "mamba-ssm":
        from mamba_ssm import Mamba as Theirs

        weights, block = block.state_dict(), Theirs(channels).cuda()
        block.load_state_dict(weights)
    x = torch.randn(batch, length, channels, device="cuda", requires_grad=True)
    dy = torch.randn(batch, length, channels, device="cuda")

    def forward() -> Tensor:
        with torch.autocast("cuda", DTYPES[dtype], enabled=dtype != "float32"):
            return block(x)

    def both() -> None:
        torch.autograd.grad(forward(), [x, *block.parameters()], dy)

    def alone() -> None:
        with torch.no_grad():
            forward()

    alone()  # compiles, as does the next
    both()
    return {
        "MiB, both": peak_memory(both, "cuda") / 2**20,
        "ms": 1e3 * median_seconds(alone, "cuda", BUDGET),
        "ms, both": 1e3 * median_seconds(both, "cuda", BUDGET),
    }


def measure_networks(quick: bool) -> Iterator[Row]:
    in_3d = ("SegResNet", "LightMUNet", "MambaClinix", "CodebookMambaUNet", "ELANResMSCAUNet")
    in_2d = ("SegResNet", "LightMUNet", "LCMambaNet")
    jobs = [(name, [32] * 3 if quick else [96] * 3, 2) for name in in_3d]
    jobs += [(name, [64] * 2 if quick else [256] * 2, 8) for name in in_2d]
    baselines: dict[tuple[str, str], Row] = {}
    for name, size, batch in jobs:
        for dtype in DTYPES:
            of = {"network": name, "images": " x ".join(map(str, (batch, *size)))}
            row = attempt(of | {"precision": dtype}, partial(step_row, name, size, batch, dtype))
            baseline = baselines.setdefault((of["images"], dtype), row)
            if "ms, step" in row and "ms, step" in baseline:
                row["/SegResNet"] = row["ms, step"] / baseline["ms, step"]
            yield row


def step_row(name: str, size: list[int], batch: int, dtype: str) -> Row:
    """A training step, as `benchmarks.networks` has it, and how far precision moves the logits."""
    torch.manual_seed(0)
    network = networks.NETWORKS[name](size).cuda()
    image = torch.randn(batch, 1, *size, device="cuda")
    precision = DTYPES[dtype]
    step = networks.training_step(network, image, precision)

    def forward() -> None:
        with torch.no_grad():
            networks.logits(network, image, precision)

    network.eval()
    moved = networks.logits_moved(network, image, precision)
    seconds = median_seconds(forward, "cuda", BUDGET)
    network.train()
    losses = [step()]
    memory = peak_memory(step, "cuda")
    seconds_of_step = median_seconds(lambda: losses.append(step()), "cuda", BUDGET)
    if not all(bool(loss.isfinite()) for loss in losses):
        raise RuntimeError("a loss is not finite")
    return {
        "ms, forward": 1e3 * seconds,
        "ms, step": 1e3 * seconds_of_step,
        "GiB, step": memory / GIB,
        "logits moved": moved,
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, ["---"] * len(columns)]
    lines += [[shown(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "tests": measure_tests,
    "scans": measure_scans,
    "maps": measure_maps,
    "blocks": measure_blocks,
    "networks": measure_networks,
}


if __name__ == "__main__":
    main()
