"""The Triton backend against the reference in float64: on a GPU, else in Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from common.ops import selective_scan, triton_scan

from .test_cpp import distance, make_inputs

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# The matrix products of backend "torch" ask for this where algorithms are to be deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

scan_module = sys.modules["common.ops.selective_scan"]
needs_triton = pytest.mark.skipif(
    triton_scan.why_unavailable() is not None, reason="needs Triton: pip install triton"
)
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


@pytest.fixture(autouse=True)
def _poison():
    """Memory from torch.empty starts as NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def short_chunks(monkeypatch):
    """Several chunks, and several carries, in sequences that the interpreter walks in a second."""
    for name, value in (("SHORTEST_CHUNK", 8), ("CARRY_CHUNKS", 2), ("CARRY_SEGMENTS", 2)):
        monkeypatch.setattr(triton_scan, name, value)


def on_device(**case) -> list[Tensor | None]:
    return [None if x is None else x.to(DEVICE) for x in make_inputs(**case)]


def run(inputs, softplus, backend, dtype=None) -> dict[str, Tensor]:
    """Outputs, and gradients for fixed random gradients of both outputs."""
    xs = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    y, last = selective_scan(*xs, softplus, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    dy, dlast = (torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in (y, last))
    given = {name: x for name, x in zip(NAMES, xs, strict=True) if x is not None}
    grads = torch.autograd.grad([y, last], list(given.values()), [dy, dlast])
    named = {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
    return {"y": y.detach(), "last": last.detach(), **named}


def assert_equals_float64(inputs, softplus=True, truth="reference", tolerance=1e-5) -> None:
    exact = run(inputs, softplus, truth, torch.float64)
    for name, x in run(inputs, softplus, "triton").items():
        assert x.isfinite().all(), name
        assert distance(x, exact[name]) <= tolerance, name


ALL, NONE = (True,) * 3, (False,) * 3
LAST = {"channels_last": True, "maps_channels_last": True}
FIRST = {"channels_last": False, "maps_channels_last": False}


@needs_triton
@pytest.mark.parametrize(
    "case",
    [
        {"length": 1, "n": 16, "group_channels": 5, **LAST},
        {"length": 2, "n": 1, "group_channels": 3, "batch": 2, **FIRST},
        {"length": 5, "n": 3, "groups": 2, "optional": NONE, "softplus": False, **LAST},
        {"length": 12, "n": 4, "group_channels": 33, **FIRST},
        {"length": 64, "n": 1, "optional": (False, True, False), **LAST},
        {"length": 63, "n": 3, "optional": (True, False, True), **FIRST},
        {"length": 65, "n": 16, "optional": (False, False, True), "softplus": False, **LAST},
        {"length": 17, "n": 16, "groups": 2, "batch": 2, **FIRST},
        {"length": 20, "n": 17, "kind": "extreme", **LAST},
        {"length": 200, "n": 3, "group_channels": 2, **LAST},
    ],
    ids=lambda case: "-".join(f"{key}={value}" for key, value in case.items()),
)
def test_equals_float64(short_chunks, case):
    inputs = on_device(**{"batch": 1, "group_channels": 4} | case)
    assert_equals_float64(inputs, case.get("softplus", True))


@needs_triton
def test_one_chunk():
    inputs = on_device(batch=1, group_channels=3, length=20, n=4)
    assert triton_scan._plan(inputs[0], inputs[3], n=4, tokens=8).chunks == 1
    assert_equals_float64(inputs)


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(short_chunks, dtype):
    inputs = on_device(batch=1, group_channels=3, length=27, n=4)
    inputs = [x if x is inputs[2] else x.to(dtype) for x in inputs]
    exact = run(inputs, True, "reference", torch.float64)
    found = run(inputs, True, "triton")
    assert found["last"].dtype == torch.float32
    for name, x in found.items():
        assert x.dtype == (torch.float32 if name in ("last", "dA") else dtype), name
        assert distance(x, exact[name]) < torch.finfo(dtype).eps, name


@needs_triton
def test_strides_that_no_layout_has(short_chunks):
    inputs = on_device(batch=1, group_channels=3, length=26, n=4)
    odd = [x.repeat_interleave(2, -1)[..., ::2] if x.dim() > 1 else x for x in inputs]
    odd[1] = odd[1].mT.contiguous().repeat_interleave(2, -1)[..., ::2].mT
    odd[5] = odd[5].repeat_interleave(2)[::2]
    assert_equals_float64(odd)
    y = selective_scan(*(x.requires_grad_() for x in odd), True, backend="triton")
    y.sum().backward()  # an expanded gradient: all strides 0


@needs_triton
@pytest.mark.parametrize("channels_last", [True, False])
def test_keeps_the_memory_layout(channels_last):
    found = run(on_device(length=9, n=1, channels_last=channels_last), True, "triton")
    for name in ("y", "du", "ddelta", "dz"):
        assert found[name].stride(1 if channels_last else 2) == 1, name


@needs_triton
def test_same_bits_twice(short_chunks):
    inputs = on_device(batch=1, group_channels=33, length=12, n=4)
    first, second = (run(inputs, True, "triton") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_triton
@pytest.mark.parametrize("optional", [ALL, NONE])
def test_operator(optional):
    inputs = on_device(batch=1, groups=2, group_channels=2, length=3, n=2, optional=optional)
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    torch.library.opcheck(triton_scan._selective_scan_triton, (*inputs, True, True))


@needs_triton
def test_gradient_where_forward_saved_nothing():
    inputs = [x.requires_grad_() for x in on_device(batch=1, group_channels=2, length=9, n=2)]
    y, *_ = triton_scan._selective_scan_triton(*inputs, True, False)
    z, *_ = triton_scan._selective_scan_triton(*inputs, True, True)
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (y, z)), strict=True):
        assert torch.equal(a, b)


@needs_triton
def test_compiled_equals_eager():
    inputs = on_device(batch=1, group_channels=2, length=9, n=2)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    eager = selective_scan(*inputs, True, backend="triton")
    # A GPU's kernels are compiled for the strides, which torch.compile may choose.
    assert distance(compiled(*inputs, True, backend="triton"), eager) < 1e-5


@needs_triton
@needs_gpu
@pytest.mark.parametrize("layout", [LAST, FIRST])
@pytest.mark.parametrize(
    "case",
    [
        {"group_channels": 64, "length": 262_144},
        {"batch": 2, "groups": 4, "group_channels": 96, "length": 3137, "n": 1},
        {"batch": 4, "group_channels": 384, "length": 197},
        {"group_channels": 100, "length": 5000, "n": 64},
    ],
)
def test_sizes_of_networks(case, layout):
    assert_equals_float64(on_device(**{"batch": 1} | case | layout), truth="torch")


@needs_triton
@needs_gpu
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_offsets_beyond_32_bits(layout):
    d, length = 1056, 2_097_152  # 2.2e9 elements
    x = torch.randn(1, length, d, device="cuda", dtype=torch.bfloat16).mT
    if layout is FIRST:
        x = x.contiguous()
    A, B = -torch.ones(d, 1, device="cuda"), torch.randn(1, 1, length, device="cuda")
    few = slice(d - 3, d)
    with torch.no_grad():
        y = selective_scan(x, x, A, B, B, delta_softplus=True, backend="triton")
        args = (x[:, few], x[:, few], A[few], B, B)
        expected = selective_scan(*args, delta_softplus=True, backend="torch")
    assert distance(y[:, few], expected) < 1e-2


@needs_triton
@needs_gpu
def test_two_million_tokens():
    assert_equals_float64(
        on_device(batch=1, group_channels=64, length=2_097_152), truth="torch", tolerance=1e-4
    )


@pytest.mark.parametrize(
    ("b", "d", "length", "n", "chunks"),
    [
        (1, 64, 262_144, 16, 1024),  # few channels: about 16 warps for each multiprocessor
        (1, 64, 2_097_152, 16, 1053),
        (2, 3072, 4096, 16, 11),
        (8, 8192, 1024, 16, 1),  # the channels fill the GPU
        (64, 1024, 1000, 1, 1),
        (1, 64, 191, 16, 1),  # too short to share
        (1, 64, 192, 16, 3),
    ],
)
def test_chunks_fill_a_gpu_and_no_more(monkeypatch, b, d, length, n, chunks):
    monkeypatch.setattr(triton_scan, "_multiprocessors", lambda _: 132)
    u, B = torch.empty(b, d, length, device="meta"), torch.empty(b, n, length, device="meta")
    for tokens in (triton_scan.FORWARD_TOKENS, triton_scan.BACKWARD_TOKENS):
        plan = triton_scan._plan(u, B, n, tokens)
        assert plan.chunks == chunks
        span = plan.tiles * tokens
        assert (chunks - 1) * span < length <= chunks * span
        assert span % triton_scan.SAVED_EVERY == 0


def test_what_it_cannot_serve(monkeypatch):
    inputs = make_inputs(length=2)
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda: None)
    monkeypatch.setattr(triton_scan, "_interpreted", lambda: True)
    with pytest.raises(ValueError, match=r"u has dtype torch\.float64; allowed .* float32"):
        selective_scan(*(x.double() for x in inputs), True, backend="triton")
    with pytest.raises(ValueError, match=r"B is on meta; allowed .* one cpu device"):
        selective_scan(*inputs[:3], inputs[3].to("meta"), inputs[4], backend="triton")
    monkeypatch.setattr(triton_scan, "_interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"u is on cpu; allowed .* one cuda device"):
        selective_scan(*inputs, True, backend="triton")


def test_missing_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    triton_scan.why_unavailable.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"Triton is not available: .*pip install triton"):
            selective_scan(*make_inputs(length=2), True, backend="triton")
    finally:
        triton_scan.why_unavailable.cache_clear()


@needs_triton
def test_old_triton(monkeypatch):
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.4.1")
    assert triton_scan.why_unavailable.__wrapped__() == "Triton is not available: 3.4.1 is too old."
    monkeypatch.setattr(sys.modules["triton"], "__version__", "3.10.0+git1")
    assert triton_scan.why_unavailable.__wrapped__() is None


def test_package_imports_without_triton():
    code = "import sys; sys.modules['triton'] = sys.modules['mamba_ssm'] = None; import common.ops"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def cuda(dtype=torch.float32, d=64) -> SimpleNamespace:
    """What `fastest` asks of a CUDA tensor."""
    shape = (1, d, 9)
    device = torch.device("cuda")
    return SimpleNamespace(shape=shape, dtype=dtype, device=device, numel=lambda: math.prod(shape))


def test_auto_on_cuda(monkeypatch):
    A = torch.zeros(64, 16)
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda: None)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert scan_module.fastest(cuda(dtype), A, False) == "triton"
    assert scan_module.fastest(cuda(torch.float64), A, False) == "torch"
    monkeypatch.setattr(triton_scan, "why_unavailable", lambda: "Triton is not there.")
    monkeypatch.setattr(scan_module, "_warned", False)
    with pytest.warns(RuntimeWarning, match=r"plain PyTorch.*not there\. Install Triton"):
        assert scan_module.fastest(cuda(), A, False) == "torch"


# What is launched is compiled, for a GPU that is not there, and not run.
FOR_HOPPER = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import JITFunction, driver

class NoDriver(DriverBase):
    def __init__(self): pass
    is_active = classmethod(lambda cls: True)
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
    def get_active_torch_device(self): return torch.device("cpu")
    def map_python_to_cpp_type(self, name): return name
    def get_benchmarker(self): raise NotImplementedError

driver.set_active(NoDriver())
launch = JITFunction.run
compiled = {}

def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
    compiled[self.__name__] = kernel.asm["cubin"]

JITFunction.run = compile_only
from common.ops import triton_scan
triton_scan.SHORTEST_CHUNK, triton_scan._multiprocessors = 8, lambda _: 132
"""

# What the operators launch, in both layouts.
SCAN = """
n, dtype, layout = int(sys.argv[1]), getattr(torch, sys.argv[2]), sys.argv[3]
def tokens(channels):
    x = torch.zeros(1, 48, channels, dtype=dtype).mT
    return x if layout == "last" else x.contiguous()

u, z, B = tokens(64).requires_grad_(), tokens(64), tokens(n)
y, last, _ = triton_scan._selective_scan_triton(
    u, u, torch.zeros(64, n), B, B, torch.zeros(64), z, torch.zeros(64), True, True
)
torch.autograd.grad([y, last], u, [torch.zeros_like(y), torch.zeros_like(last)])
assert set(compiled) == {"chunk_states", "carry", "forward", "chunk_adjoints", "backward"}, compiled
assert all(compiled.values())
"""


@needs_triton
@pytest.mark.parametrize(
    ("n", "dtype", "layout"),
    [
        (16, "float32", "last"),
        pytest.param(16, "float32", "first", marks=pytest.mark.slow),
        pytest.param(16, "bfloat16", "last", marks=pytest.mark.slow),
        pytest.param(1, "float32", "last", marks=pytest.mark.slow),
        pytest.param(3, "float16", "first", marks=pytest.mark.slow),
        pytest.param(64, "float32", "last", marks=pytest.mark.slow),
    ],
)
def test_compiles_for_hopper(tmp_path, n, dtype, layout):
    compile_for_hopper(tmp_path, SCAN, n, dtype, layout)


def compile_for_hopper(cache, script: str, *args: object) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", FOR_HOPPER + script, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
