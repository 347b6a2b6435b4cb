"""The C++ backend against the chunked one in float64, and the library's way into the cache."""

from __future__ import annotations

import importlib.util
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.ops import cpp, native, selective_scan

scan_module = sys.modules["common.ops.selective_scan"]
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")

needs_library = pytest.mark.skipif(
    native.why_unavailable() is not None, reason="needs a C++ compiler"
)


def make_inputs(
    batch=2,
    groups=1,
    group_channels=20,
    length=100,
    n=16,
    kind="ordinary",
    optional=(True, True, True),
    softplus=True,
    channels_last=True,
    maps_channels_last=True,
    seed=0,
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    d = groups * group_channels

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    u, z = normal(batch, d, length), normal(batch, d, length)
    delta = normal(batch, d, length) - 2
    A = -torch.exp(normal(d, n))
    B, C = (
        normal(*((batch, groups, n, length) if groups > 1 else (batch, n, length))) for _ in "BC"
    )
    if kind == "extreme":
        delta, z = uniform(-50, 50, *delta.shape), 30 * z
        A = -(10 ** uniform(-4, 3, d, n))
    elif kind == "zeros":
        u, B = torch.zeros_like(u), torch.zeros_like(B)
    if not softplus:
        delta = delta.abs()  # so that the recurrence is stable
    D, bias = normal(d), (normal(d) if softplus else normal(d).abs())
    if channels_last:
        u, delta, z = (x.mT.contiguous().mT for x in (u, delta, z))
    if maps_channels_last:  # a slice of a wider projection, as in the networks
        wide = torch.cat([B, B, C], -2).mT.contiguous().mT
        B, C = wide[..., n : 2 * n, :], wide[..., 2 * n :, :]
    D, z, bias = (x if given else None for x, given in zip((D, z, bias), optional, strict=True))
    return [u, delta, A, B, C, D, z, bias]


def run(inputs, softplus, backend, dtype=torch.float32) -> dict[str, Tensor]:
    """Outputs, and gradients for fixed random gradients of both outputs."""
    xs = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    y, last = selective_scan(*xs, softplus, return_last_state=True, backend=backend)
    generator = torch.Generator().manual_seed(1)
    dy, dlast = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (y, last))
    given = {name: x for name, x in zip(NAMES, xs, strict=True) if x is not None}
    grads = torch.autograd.grad([y, last], list(given.values()), [dy, dlast])
    named = {f"d{name}": grad for name, grad in zip(given, grads, strict=True)}
    return {"y": y.detach(), "last": last.detach(), **named}


def distance(x: Tensor, truth: Tensor) -> float:
    assert x.shape == truth.shape
    difference = (x.double() - truth.double()).norm()
    return float(difference / truth.double().norm().clamp(min=1e-30))


def assert_equals_float64(inputs, softplus, tolerance=1e-5) -> None:
    truth = run(inputs, softplus, "torch", torch.float64)
    found = run(inputs, softplus, "cpp")
    single = None
    for name, x in found.items():
        assert x.isfinite().all(), name
        error = distance(x, truth[name])
        if error > tolerance:
            single = single or run(inputs, softplus, "torch")
            assert error <= 4 * distance(single[name], truth[name]), name


@st.composite
def cases(draw):
    n = draw(st.sampled_from([1, 3, 16, 17]))
    length = draw(st.one_of(st.integers(1, 200), st.sampled_from([255, 256, 257, 1000, 5000])))
    groups = draw(st.integers(1, 3))
    batch = draw(st.integers(1, 3))
    most = max(1, 1_500_000 // (length * n * groups * batch))
    return {
        "batch": batch,
        "groups": groups,
        "group_channels": draw(st.integers(1, min(most, 90))),
        "length": length,
        "n": n,
        "kind": draw(st.sampled_from(["ordinary", "extreme", "zeros"])),
        "optional": draw(st.tuples(*[st.booleans()] * 3)),
        "softplus": draw(st.booleans()),
        "channels_last": draw(st.booleans()),
        "maps_channels_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@needs_library
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(cases(), st.sampled_from([1, 2, 7]))
@example({"batch": 1, "group_channels": 3, "length": 5000, "n": 16, "kind": "extreme"}, 7)
@example({"batch": 1, "group_channels": 100, "length": 129, "n": 1, "channels_last": False}, 2)
def test_equals_float64(case, threads):
    torch.set_num_threads(threads)
    assert_equals_float64(make_inputs(**case), case.get("softplus", True))


@needs_library
@pytest.mark.parametrize("isa", range(3))
@pytest.mark.parametrize("n", [1, 4, 16, 17])
@pytest.mark.parametrize("kind", ["ordinary", "extreme"])
def test_every_instruction_set(isa, n, kind):
    cpp._highest_isa = isa
    assert_equals_float64(make_inputs(n=n, groups=2, length=131, kind=kind), True)


@needs_library
def test_exp_and_softplus_at_their_ends():
    raw = torch.tensor([-1e4, -100, -88, -50, -20, -1e-6, 0, 1e-6, 20, 50, 88, 1e4])
    for isa in range(3):
        cpp._highest_isa = isa
        ones = torch.ones(1, 1, 1)
        for x in raw:
            args = [ones, x.expand(1, 1, 1), -torch.ones(1, 1), ones, ones]
            y = selective_scan(*args, delta_softplus=True, backend="cpp").item()
            softplus = torch.nn.functional.softplus(x.double()).item()
            assert y == pytest.approx(softplus, rel=3e-7, abs=2e-38)
            gate = [ones, ones, -torch.ones(1, 1), ones, ones, None, x.expand(1, 1, 1)]
            silu = torch.nn.functional.silu(x.double()).item()
            assert selective_scan(*gate, backend="cpp").item() == pytest.approx(silu, 3e-7, 1e-34)


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 3, 5000), (2, 70, 700)])
def test_same_bits_twice(threads, shape):
    torch.set_num_threads(threads)
    batch, d, length = shape
    inputs = make_inputs(batch=batch, group_channels=d, length=length)
    first, second = (run(inputs, True, "cpp") for _ in range(2))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@needs_library
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs(dtype):
    inputs = [None if x is None else x.to(dtype) for x in make_inputs()]
    inputs[2] = inputs[2].float()
    xs = [None if x is None else x.requires_grad_() for x in inputs]
    y = selective_scan(*xs, True, backend="cpp")
    assert y.dtype == dtype
    truth = selective_scan(*(x.detach().double() for x in xs), True, backend="torch")
    assert distance(y.detach(), truth) < torch.finfo(dtype).eps
    y.sum().backward()
    assert all(x.grad.dtype == x.dtype and x.grad.isfinite().all() for x in xs)


@needs_library
def test_strides_that_no_fast_path_takes():
    inputs = make_inputs(n=3)
    odd = [x.repeat_interleave(2, -1)[..., ::2] if x.dim() > 1 else x for x in inputs]
    odd[1] = odd[1].mT.contiguous().repeat_interleave(2, -1)[..., ::2].mT
    assert_equals_float64(odd, True)
    y = selective_scan(*(x.requires_grad_() for x in odd), True, backend="cpp")
    y.sum().backward()  # an expanded gradient: all strides 0


@needs_library
@pytest.mark.parametrize("channels_last", [True, False])
def test_keeps_the_memory_layout(channels_last):
    inputs = make_inputs(channels_last=channels_last)
    axis = 1 if channels_last else 2
    found = run(inputs, True, "cpp")
    for name in ("y", "du", "ddelta", "dz"):
        assert found[name].stride(axis) == 1, name


@needs_library
@pytest.mark.parametrize("save_states", [True, False])
@pytest.mark.parametrize("optional", [(True,) * 3, (False,) * 3])
def test_operator(save_states, optional):
    inputs = make_inputs(groups=2, group_channels=3, length=70, n=3, optional=optional)
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(cpp._selective_scan_cpp, (*inputs, True, save_states))


@needs_library
def test_gradient_where_forward_saved_nothing():
    inputs = [x.requires_grad_() for x in make_inputs()]
    y, *_ = cpp._selective_scan_cpp(*inputs, True, False)
    z, *_ = cpp._selective_scan_cpp(*inputs, True, True)
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs) for x in (y, z)), strict=True):
        assert torch.equal(a, b)


@needs_library
def test_auto_takes_it_for_float32_only(monkeypatch):
    taken = []

    def spy(*args):
        taken.append(args[0].dtype)
        return cpp.selective_scan_cpp(*args)

    monkeypatch.setattr(scan_module, "selective_scan_cpp", spy)
    inputs = make_inputs()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        selective_scan(*(x.to(dtype) for x in inputs), True)
    assert taken == [torch.float32, torch.bfloat16]


@needs_library
def test_workers_forked_after_use():
    """OpenMP's threads do not live on in a fork; a DataLoader's workers use one each, their own."""
    program = """
import torch
from torch.utils.data import DataLoader, Dataset
from common.ops import selective_scan

class Scans(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        u = torch.full((1, 64, 1000), float(index))
        B = torch.ones(1, 16, 1000)
        return selective_scan(u, u, -torch.ones(64, 16), B, B, backend="cpp")

torch.set_num_threads(2)
here = [Scans()[i] for i in range(4)]
loader = DataLoader(Scans(), None, num_workers=2, multiprocessing_context="fork")
assert all(map(torch.equal, loader, here))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120)
    assert done.returncode == 0


def test_what_it_cannot_serve():
    inputs = make_inputs()
    with pytest.raises(ValueError, match=r"u has dtype torch\.float64; allowed .* float32"):
        selective_scan(*(x.double() for x in inputs), True, backend="cpp")
    with pytest.raises(ValueError, match=r"u is on meta; allowed .* CPU"):
        selective_scan(*(x.to("meta") for x in inputs), True, backend="cpp")


# ---- the library's way into the cache, with a source that compiles at once ---------------------

TINY = """
extern "C" const char* selective_scan_source() { return SOURCE_HASH; }
extern "C" int selective_scan_isa() { return 0; }
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The folder that a tiny library goes to; nothing is loaded yet."""
    source = tmp_path / "ops" / "csrc" / "selective_scan.cpp"
    source.parent.mkdir(parents=True)
    source.write_text(TINY)
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native._find_or_build.cache_clear()
    yield tmp_path / "cache" / "monai-mamba"
    native._find_or_build.cache_clear()


def forget_and_load() -> None:
    native._find_or_build.cache_clear()
    assert native.why_unavailable() is None
    assert native.instruction_set() == native.INSTRUCTION_SETS[0]


@needs_library
def test_cache_is_private_and_used_again(tiny, monkeypatch):
    forget_and_load()
    assert stat.S_IMODE(tiny.stat().st_mode) == 0o700
    (library,) = tiny.glob("*.so")
    monkeypatch.setattr(native, "compile_library", lambda *_: pytest.fail("compiled again"))
    forget_and_load()
    assert list(tiny.glob("*.so")) == [library]


@needs_library
@pytest.mark.parametrize("spoil", [lambda data: b"", lambda data: data[:3000], lambda _: b"x" * 99])
def test_corrupt_library_is_built_again(tiny, spoil):
    forget_and_load()
    (library,) = tiny.glob("*.so")
    good = library.read_bytes()
    library.unlink()  # the process still maps the good one
    library.write_bytes(spoil(good))
    forget_and_load()
    assert [path.read_bytes() for path in tiny.glob("*.so")] == [good]


@needs_library
def test_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    forget_and_load()
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    forget_and_load()
    assert (tmp_path / "file").read_bytes() == b""


@pytest.fixture
def counted(tiny, tmp_path, monkeypatch):
    """The file that a slow compiler, named in $CXX, writes a line to for each library."""
    calls, compiler = tmp_path / "calls", tmp_path / "slow-compiler"
    calls.touch()
    real = shlex.join(next(native._compilers()))
    compiler.write_text(
        f'#!/bin/sh\nif [ "$1" != --version ]; then echo $$ >> {calls}; sleep "$DELAY"; fi\n'
        f'exec {real} "$@"\n'
    )
    compiler.chmod(0o700)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("DELAY", "1")
    return calls


def build_in_a_process(before: str = "") -> subprocess.Popen[bytes]:
    program = (
        "import importlib.util, pathlib, sys\n"
        "spec = importlib.util.spec_from_file_location('native', sys.argv[1])\n"
        "native = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(native)\n"
        "native.SOURCE = pathlib.Path(sys.argv[2])\n"
        f"{before}\n"
        "assert native.why_unavailable() is None, native.why_unavailable()\n"
    )
    return subprocess.Popen([sys.executable, "-c", program, native.__file__, str(native.SOURCE)])


@needs_library
def test_processes_that_build_at_once_compile_once(tiny, counted):
    racing = [build_in_a_process() for _ in range(4)]
    assert [process.wait(timeout=60) for process in racing] == [0] * 4
    assert len(counted.read_text().splitlines()) == 1
    assert len(list(tiny.glob("*.so"))) == 1


@needs_library
def test_threads_that_build_at_once_compile_once(tiny, counted):
    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(lambda _: native.why_unavailable(), range(4)))
    assert reasons == [None] * 4
    assert len(counted.read_text().splitlines()) == 1


@needs_library
def test_a_process_that_dies_while_it_builds_holds_nobody_up(tiny, counted, monkeypatch):
    monkeypatch.setenv("DELAY", "20")
    dying = build_in_a_process()
    deadline = time.monotonic() + 60
    while not (compiler := counted.read_text()).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setenv("DELAY", "0")
    waiting = build_in_a_process()
    time.sleep(1)
    assert waiting.poll() is None
    dying.kill()  # its compiler, which lives on, must not keep the lock
    dying.wait()
    assert waiting.wait(timeout=60) == 0
    assert len(counted.read_text().splitlines()) == 2
    os.kill(int(compiler), signal.SIGKILL)


@needs_library
def test_without_locks_each_process_builds(tiny, counted):
    unable = (
        "import errno, fcntl, os\n"
        "def flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n"
        "fcntl.flock = flock"
    )
    racing = [build_in_a_process(unable) for _ in range(2)]
    assert [process.wait(timeout=60) for process in racing] == [0] * 2
    assert len(list(tiny.glob("*.so"))) == 1


@pytest.mark.parametrize("compiler", [None, "no-such-compiler", "false"])
def test_without_a_compiler(tiny, tmp_path, monkeypatch, compiler):
    if compiler is None:
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", compiler)
    monkeypatch.setattr(scan_module, "_warned", False)
    inputs = make_inputs()
    with pytest.raises(RuntimeError, match=f"not available: {compiler or ''}.*apt install"):
        selective_scan(*inputs, True, backend="cpp")
    with pytest.warns(RuntimeWarning, match=f"{compiler or 'no C'}.*apt install") as caught:
        y = selective_scan(*inputs, True)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        selective_scan(*inputs, True)
    assert torch.equal(y, selective_scan(*inputs, True, backend="torch"))


@needs_library
def test_library_beside_the_package(tiny, monkeypatch):
    beside = native.SOURCE.parent.parent / "_selective_scan.so"
    beside.write_bytes(b"stale")
    forget_and_load()
    assert native.location() != beside
    native.compile_library(next(native._compilers()), beside)
    monkeypatch.setattr(native, "_compilers", lambda: pytest.fail("looked for a compiler"))
    forget_and_load()
    assert native.location() == beside


def test_native_needs_only_the_standard_library():
    spec = importlib.util.spec_from_file_location("alone", Path(native.__file__))
    code = "import sys; import importlib.util as i; s = i.spec_from_file_location('n', sys.argv[1])"
    code += "; s.loader.exec_module(i.module_from_spec(s)); assert 'torch' not in sys.modules"
    assert spec is not None
    subprocess.run([sys.executable, "-c", code, native.__file__], check=True)
