"""What this machine runs the selective scan with, why, how fast, and whether the results are right.

Which backend serves what is asked of `common.ops`, so a new backend shows up here by itself.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from . import __version__
from .ops import (
    BACKENDS,
    Backend,
    causal_conv1d,
    fastest_backend,
    native,
    selective_scan,
    why_not,
)

PACKAGES = ("torch", "monai", "numpy", "triton", "mamba-ssm", "causal-conv1d")
TOLERANCE = 1e-5  # relative error of float32 results, in the Euclidean norm
_BFLOAT16 = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # as Linux calls them
_NO_FLOAT64 = "; LightM-UNet and Codebook Mamba U-Net need float64, which it has not"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class SelfTestError(RuntimeError):
    """A backend that is there gives wrong results or fails; the message names it."""


def examine() -> Iterator[str]:
    """The report's lines, each as soon as it is known.

    Raises:
        SelfTestError: after the last line, where a backend is wrong by more than `TOLERANCE`.
    """
    yield from _versions()
    yield from _devices()
    yield from _choices()
    yield from _self_test()


def _versions() -> Iterator[str]:
    yield "Versions"
    yield f"  {'python':20} {platform.python_version()}"
    yield f"  {'monai-mamba-bundles':20} {__version__}"
    for package in PACKAGES:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        yield f"  {package:20} {version}"


def _devices() -> Iterator[str]:
    yield ""
    yield "Devices"
    yield f"  cpu     {cpu_name()}, {torch.get_num_threads()} threads"
    yield f"          {_bfloat16()}"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield (
            f"  cuda:{index}  {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, "
            f"capability {gpu.major}.{gpu.minor}"
        )
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield f"  cuda    none: {'no GPU is found' if built else 'this torch is built without it'}"
    for device, there, lacking in (
        ("mps", torch.backends.mps.is_available(), _NO_FLOAT64),
        ("xpu", torch.xpu.is_available(), ""),
    ):
        yield (
            f"  {device}     {'found' if there else 'none'}: "
            f"the scan runs there by the torch backend, in plain PyTorch{lacking}"
        )


def _bfloat16() -> str:
    """What the processor has for it, and what that is worth."""
    flags = _cpuinfo("flags").split()
    found = [name for flag, name in _BFLOAT16.items() if flag in flags]
    has = "has " + (" and ".join(found) or "neither AMX nor AVX512-BF16")
    ratio = _seconds_of_products(torch.bfloat16) / _seconds_of_products(torch.float32)
    return (
        f"{has if flags else 'its instruction sets are not known'}: --precision bfloat16 is "
        f"{'faster' if ratio < 1 else 'slower'} here, products take {ratio:.2g} of float32's time"
    )


def _seconds_of_products(dtype: torch.dtype) -> float:
    """Of a linear layer's, as in a network: the median of five."""
    x, weight = torch.ones(4096, 256, dtype=dtype), torch.ones(256, 256, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        F.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first is a warm-up


def _choices() -> Iterator[str]:
    yield ""
    yield "C++ library (compiled now, in some ten seconds, where it is not yet)"
    reason = native.why_unavailable()
    if reason is None:
        tiles = " and AMX" if native.has_tiles() else ""
        yield f"  {native.location()}, for {native.instruction_set()}{tiles}"
    else:
        yield f"  not available: {reason}"
    yield f"  cache folder {native.cache_folder()}"
    yield ""
    yield 'What backend="auto" takes, and why no faster one'
    for device in ("cpu", "cuda"):
        served: dict[tuple[str, ...], list[str]] = {}  # what is said -> of which dtypes
        for dtype in _DTYPES:
            served.setdefault(_choice(device, dtype), []).append(str(dtype).removeprefix("torch."))
        for (chosen, *reasons), dtypes in served.items():
            yield f"  {device:4}  {', '.join(dtypes):36}  {chosen}"
            yield from (f"{'':46}{reason}" for reason in reasons)
    reason = causal_conv1d.why_unavailable()
    convolves = "causal-conv1d" if reason is None else f"torch: {reason} {causal_conv1d.HOW_TO_GET}"
    yield f"  mamba_ssm convolves by {convolves}"
    yield "  TorchScript and torch.export: torch, for what is exported may run where no other is"


def _choice(device: str, dtype: torch.dtype) -> tuple[str, ...]:
    """The backend that is taken, then a line for each that is not there or not made for this."""
    chosen = fastest_backend(device, dtype)
    whys = ((backend, why_not(backend, device, dtype)) for backend in _backends())
    return chosen, *(f"not {backend}: {reason}" for backend, reason in whys if reason is not None)


def _self_test() -> Iterator[str]:
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    yield ""
    yield "Self-test: a forward's speed; outputs and gradients against the reference in float64"
    cases = [_inputs(2, 24, 300, n, groups=2) for n in (1, 16)]
    truths = [_results(_to(case, "cpu", torch.float64), "reference") for case in cases]
    failed = []
    for device in devices:
        shape = (1 if device == "cpu" else 16, 64, 4096, 16)
        yield f"  {device}, float32, speed at (b, d, l, n) = {shape}"
        timed = _to(_inputs(*shape), device)
        for backend in _backends():
            if why_not(backend, torch.device(device).type, torch.float32) is not None:
                continue
            try:
                error, name = max(
                    _worst(_results(_to(case, device), backend), truth)
                    for case, truth in zip(cases, truths, strict=True)
                )
                rate = _rate(timed, backend)
            except Exception as problem:  # whatever a backend raises is a finding
                yield f"    {backend:10} fails"
                failed.append(f"{backend} on {device} fails with {problem!r}")
                continue
            right = error <= TOLERANCE
            yield (
                f"    {backend:10} {'right' if right else 'WRONG'}  {rate:8.3f} G states/s  "
                f"error {error:.1e} in {name} (at most {TOLERANCE:.0e})"
            )
            if not right:
                failed.append(f"{backend} on {device} is wrong by {error:.1e} in {name}")
    if failed:
        raise SelfTestError(f"The self-test failed: {'; '.join(failed)}.")


def _backends() -> list[Backend]:
    return [backend for backend in BACKENDS if backend != "auto"]


def cpu_name() -> str:
    """The processor's model, as far as the system tells."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
    """What Linux says of the first processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def _inputs(batch: int, d: int, length: int, n: int, groups: int = 1) -> dict[str, Tensor]:
    """All tensor arguments of `selective_scan`, tokens channels-last as in the networks."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "u": normal(batch, length, d).mT,
        "delta": normal(batch, length, d).mT - 2,
        "A": -torch.exp(normal(d, n)),
        "B": normal(batch, groups, length, n).mT,
        "C": normal(batch, groups, length, n).mT,
        "D": normal(d),
        "z": normal(batch, length, d).mT,
        "delta_bias": normal(d),
    }


def _to(
    inputs: dict[str, Tensor], device: str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    return {name: x.to(device, dtype) for name, x in inputs.items()}


def _run(inputs: dict[str, Tensor], backend: Backend) -> tuple[Tensor, Tensor]:
    found = selective_scan(**inputs, delta_softplus=True, return_last_state=True, backend=backend)
    return cast(tuple[Tensor, Tensor], found)


def _results(inputs: dict[str, Tensor], backend: Backend) -> dict[str, Tensor]:
    """Outputs and gradients of a case, by name."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    y, last = _run(inputs, backend)
    grads = torch.autograd.grad([y, last], list(inputs.values()), [y.detach(), last.detach()])
    named = {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}
    return {"y": y.detach(), "last state": last.detach(), **named}


def _worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error and what has it; infinite where a result is not finite."""

    def error(name: str) -> float:
        difference = (found[name].double().cpu() - truth[name]).norm() / truth[name].norm()
        return float(difference.nan_to_num(nan=torch.inf))

    return max((error(name), name) for name in truth)


def _rate(inputs: dict[str, Tensor], backend: Backend) -> float:
    """1e9 states per second: the median of at least three forwards, over a fifth of a second."""
    synchronise = torch.cuda.synchronize if inputs["u"].is_cuda else lambda: None
    seconds: list[float] = []
    with torch.no_grad():
        _run(inputs, backend)  # warm-up
        while len(seconds) < 3 or sum(seconds) < 0.2:
            synchronise()
            start = time.perf_counter()
            _run(inputs, backend)
            synchronise()
            seconds.append(time.perf_counter() - start)
    states = inputs["u"].numel() * inputs["A"].shape[1]
    return states / statistics.median(seconds) / 1e9
