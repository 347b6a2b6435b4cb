"""The doctor's report, and what it says of a machine or a backend that is not well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import cli, doctor
from common.ops import BACKENDS, causal_conv1d, fastest_backend, native, why_not


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    source = tmp_path / "ops" / "csrc" / "selective_scan.cpp"  # no library lies beside it
    source.parent.mkdir(parents=True)
    source.touch()
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setenv("CXX", "no-such-compiler")
    native._find_or_build.cache_clear()
    yield
    native._find_or_build.cache_clear()


def test_report_names_the_facts():
    done = subprocess.run(
        [sys.executable, "-m", "common", "doctor"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[words.index("torch") + 1] == torch.__version__
    assert f"{torch.get_num_threads()} threads" in done.stdout
    for device in ("cpu", "cuda"):
        backend = fastest_backend(device, torch.float32)
        assert any(
            line.split()[0] == device and "float32" in line and line.endswith(f"  {backend}")
            for line in done.stdout.splitlines()
            if line.strip()
        )
    for backend in BACKENDS[1:]:
        if why_not(backend, "cpu", torch.float32) is None:
            assert f"    {backend:10} right  " in done.stdout
    if native.why_unavailable() is None:
        tiles = " and AMX" if native.has_tiles() else ""
        assert f"{native.location()}, for {native.instruction_set()}{tiles}\n" in done.stdout
    for device in ("mps", "xpu"):
        (line,) = (x for x in done.stdout.splitlines() if x.startswith(f"  {device} "))
        assert "the scan runs there by the torch backend, in plain PyTorch" in line
        assert fastest_backend(device, torch.float32) == "torch"
    without = causal_conv1d.why_unavailable()
    convolves = "causal-conv1d" if without is None else f"torch: {without} Install it with: "
    assert f"mamba_ssm convolves by {convolves}" in done.stdout


def test_missing_compiler_is_explained(no_compiler, capsys):
    cli.doctor()
    said = capsys.readouterr().out
    assert "not available: no-such-compiler" in said
    line = next(line for line in said.splitlines() if "not cpp" in line)
    assert "no-such-compiler" in line
    assert native.HOW_TO_GET in line
    assert "    cpp " not in said  # what is not there is not tested


@pytest.mark.parametrize("wrong", ["y", "gradient", "nan", "raises"])
def test_broken_backend_fails_in_one_sentence(wrong, monkeypatch, capsys):
    right = doctor.selective_scan

    def broken(*args, backend, **kwargs):
        y, last = right(*args, backend=backend, **kwargs)
        if backend != "torch":
            return y, last
        if wrong == "raises":
            raise RuntimeError("no kernel")
        if wrong == "gradient":  # the same value, 1.01 times the gradient
            return 1.01 * y - 0.01 * y.detach(), last
        return y * (torch.nan if wrong == "nan" else 1.01), last

    monkeypatch.setattr(doctor, "selective_scan", broken)
    with pytest.raises(SystemExit) as ended:
        cli.doctor()
    sentence = str(ended.value.code)
    assert sentence.startswith("error: The self-test failed: torch on cpu ")
    assert ("no kernel" if wrong == "raises" else "is wrong by ") in sentence
    said = capsys.readouterr().out
    assert f"    torch      {'fails' if wrong == 'raises' else 'WRONG'}" in said
    assert "    reference  right" in said


def test_every_backend_says_where_it_serves(no_compiler):
    assert why_not("cpp", "cuda", torch.float32) == "it is made for cpu."
    assert why_not("cpp", "cpu", torch.float64) == "its arithmetic is float32."
    assert native.HOW_TO_GET in str(why_not("cpp", "cpu", torch.float32))
    assert fastest_backend("cpu", torch.float32) == "torch"
    for backend in BACKENDS[1:]:
        for device in ("cpu", "cuda"):
            reason = why_not(backend, device, torch.float16)
            assert reason is None or reason.endswith(".")


def test_processor_has_a_name():
    assert doctor.cpu_name()
    if Path("/proc/cpuinfo").exists():
        assert doctor.cpu_name() in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 amx_bf16 amx_tile", "has AMX and AVX512-BF16: "),
        ("avx512f avx512_bf16", "has AVX512-BF16: "),
        ("avx2 fma", "has neither AMX nor AVX512-BF16: "),
        ("", "its instruction sets are not known: "),  # not Linux
    ],
)
@pytest.mark.parametrize(("seconds", "verdict"), [(0.2, "faster"), (3.0, "slower")])
def test_what_bfloat16_is_worth(monkeypatch, flags, expected, seconds, verdict):
    monkeypatch.setattr(doctor, "_cpuinfo", lambda field: flags if field == "flags" else "A CPU")
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(doctor, "_seconds_of_products", times.__getitem__)
    (_, _, _, line, *_) = doctor._devices()
    assert line == (
        f"          {expected}--precision bfloat16 is {verdict} here, "
        f"products take {seconds:.2g} of float32's time"
    )


def test_products_are_timed():
    assert all(doctor._seconds_of_products(x) > 0 for x in (torch.float32, torch.bfloat16))
