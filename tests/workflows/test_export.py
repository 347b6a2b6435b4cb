"""Every network in every form, read by a process that has neither this package nor MONAI."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import InputError
from common.networks import (
    CodebookMambaUNet,
    ELANResMSCAUNet,
    LCMambaNet,
    LightMUNet,
    LiverTumourCascade,
    MambaClinix,
    SegMamba,
    SwinUMamba,
    UMamba,
    VMUNet,
    lcmambanet,
)
from common.workflows import FORMS, export, export_network

NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "LightMUNet-2D": (lambda: LightMUNet(2, 2, 3, 16, (1, 1), (1,)), [24, 16]),
    "LightMUNet-3D": (lambda: LightMUNet(3, 1, 3, 16, (1, 1), (1,)), [24, 16, 8]),
    "MambaClinix": (
        lambda: MambaClinix(1, 3, (8, 16, 32), ((1, 1, 1), (2, 2, 2), (2, 2, 1)), ((3, 3, 3),) * 3),
        [16, 16, 12],
    ),
    "LCMambaNet": (lambda: LCMambaNet("T", 1, 3), [40, 32]),
    "CodebookMambaUNet": (lambda: CodebookMambaUNet(1, 2, (4, 8), 8, 8), [16, 20, 12]),
    "ELANResMSCAUNet": (lambda: ELANResMSCAUNet(1, 2, (4, 4, 4, 4, 4)), [32, 16, 16]),
    "UMambaBot": (lambda: UMamba(3, 1, 3, features=(8, 16, 16)), [16, 12, 8]),
    "UMambaEnc-1": (lambda: UMamba(2, 1, 3, "encoder", 1, features=(8, 16, 16)), [24, 20]),
    "UMambaEnc": (  # whose deepest map has channels for tokens
        lambda: UMamba(2, 1, 3, "encoder", features=(8, 16, 16), input_size=(8, 12)),
        [8, 12],
    ),
    "LiverTumourCascade": (
        lambda: LiverTumourCascade(nn.Conv3d(1, 1, 3), nn.Conv3d(1, 1, 3)),
        [8] * 3,
    ),
    "VMUNet": (lambda: VMUNet(1, 2, (1, 1), (1, 1), (8, 16)), [40, 32]),
    "SwinUMamba": (lambda: SwinUMamba(1, 2, depths=(1, 1), features=(8, 16)), [40, 32]),
    "SwinUMambaD": (lambda: SwinUMamba(1, 2, "mamba", (1, 1), (8, 16)), [40, 32]),
    "SegMamba": (lambda: SegMamba(1, 2, (1, 1, 1, 1), (4, 4, 8, 8), 8), [16, 32, 64]),
    # Twins: each that has an operation of its own.
    "LightMUNet-conv": (lambda: LightMUNet(3, 1, 3, 16, (1, 1), (1,), mixer="conv"), [24, 16, 8]),
    "VMUNet-attention": (
        lambda: VMUNet(1, 2, (1, 1), (1, 1), (8, 16), mixer="attention"),
        [40, 32],
    ),
}
ONE_SIZE = ("UMambaEnc",)
LOADER = """
import sys
import numpy as np
{read}
for name in sys.argv[1:]:
    with np.load(name + ".npz") as case:
        image, expected = case["image"], case["expected"]
    difference = np.abs(run(name, image) - expected).max()
    assert difference <= 1e-4 * max(1, np.abs(expected).max()), (name, difference)
assert not {{"common", "monai", *{absent}}} & set(sys.modules), sys.modules.keys()
"""
READ = {
    "torchscript": """
import torch
torch.set_grad_enabled(False)
def run(name, image):
    return torch.jit.load(name)(torch.from_numpy(image)).numpy()
""",
    "torch_export": """
import torch
torch.set_grad_enabled(False)
def run(name, image):
    return torch.export.load(name).module()(torch.from_numpy(image)).numpy()
""",
    "onnx": """
import onnxruntime
def run(name, image):
    session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]
""",
}


def build(name: str) -> tuple[nn.Module, list[int]]:
    torch.manual_seed(0)
    network, size = NETWORKS[name]
    return network().eval(), size


@pytest.fixture
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lcmambanet._DEPTHS, "T", (1, 1, 1, 1))


@pytest.mark.slow
@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("form", FORMS)
def test_every_network(form: str, tmp_path: Path):
    ending = {"torchscript": ".ts", "torch_export": ".pt2", "onnx": ".onnx"}[form]
    files = [str(tmp_path / f"{name}{ending}") for name in NETWORKS]
    for name, file in zip(NETWORKS, files, strict=True):
        network, size = build(name)
        export_network(network, size, form, file)
        if form == "torchscript" and name not in ONE_SIZE:  # it takes any size
            size = [x + 32 for x in size]
        channels = 2 if name == "LightMUNet-2D" else 1
        image = torch.rand(3, channels, *size)  # and all of them, any batch
        with torch.no_grad():
            expected = network.double()(image.double())
        np.savez(f"{file}.npz", image=image.numpy(), expected=expected.numpy())
    absent = {"torch"} if form == "onnx" else set()
    program = LOADER.format(read=READ[form], absent=absent or "()")
    command = [sys.executable, "-W", "ignore", "-c", program, *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["LightMUNet-2D", "LightMUNet-3D", "VMUNet"])
def test_program_without_compiled_operators(name: str):
    """Of Mamba and of the scan of a map; the slow test has all networks, in every form."""
    network, size = build(name)
    x = torch.rand(1, 2 if name == "LightMUNet-2D" else 1, *size)
    program = torch.export.export(network, (x,))
    assert not any("monai_mamba" in str(node.target) for node in program.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-4)


class Shifted(nn.Module):
    """A network that gives another answer when it is scripted."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.shift if torch.jit.is_scripting() else y


class Coarse(nn.Module):
    """A network that loses digits in float32, or does so only in the file or only out of it."""

    def __init__(self, in_file: bool, in_network: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.conv.weight.data.fill_(1.0)
        self.conv.bias.data.fill_(0.0)
        self.in_file = in_file
        self.in_network = in_network

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        coarse = self.in_file if torch.jit.is_scripting() else self.in_network
        return (y + 1e4) - 1e4 if coarse else y


def test_a_file_that_is_right_where_float32_is_wrong(tmp_path: Path):
    network = Coarse(in_file=False, in_network=True)
    assert export_network(network, [16, 16], "torchscript", tmp_path / "model.ts") < 1e-6


def test_a_file_that_is_as_wrong_as_float32(tmp_path: Path):
    network = Coarse(in_file=True, in_network=True)
    with pytest.raises(InputError, match=r"in float64 by 0\.000.*; allowed is 0\.0001,"):
        export_network(network, [16, 16], "torchscript", tmp_path / "model.ts")
    assert not list(tmp_path.iterdir())


class Amplifying(nn.Module):
    """A norm of a map that is constant but for some 1e-4: of its digits float32 has four."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.conv.weight.data.fill_(1e-4)
        self.conv.bias.data.fill_(1.0)
        self.norm = nn.InstanceNorm2d(1, eps=1e-12)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y + self.shift if torch.jit.is_scripting() else y


def test_what_float32_cannot_help_is_allowed_and_no_more(tmp_path: Path):
    file = tmp_path / "model.ts"
    difference = export_network(Amplifying(0), [16, 16], "torchscript", file)
    assert difference > 2e-4  # the largest logit is below 2
    with pytest.raises(InputError, match="differs from the network in float64"):
        export_network(Amplifying(30 * difference), [16, 16], "torchscript", file)


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_that_exports_are_held_to_has_nothing_in_float32(name: str):
    network, size = build(name)
    image = torch.rand(1, 2 if name == "LightMUNet-2D" else 1, *size, dtype=torch.float64)
    narrow: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            every = outputs if isinstance(outputs, (tuple, list)) else [outputs]
            narrow.extend(
                str(function)
                for x in every
                if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
            )
            return outputs

    exact = export._in_float64(network)
    with torch.no_grad(), Watch():
        logits = exact(image)
    assert logits.dtype == torch.float64
    assert narrow == []


def test_backend_that_is_named_for_float32(tmp_path: Path):
    network = LightMUNet(2, 1, 2, 8, (1, 1), (1,), backend="cpp").eval()
    exact = export._in_float64(network)
    with torch.no_grad():
        assert exact(torch.rand(1, 1, 16, 16, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"padding": 1}),
        ((3, 1, 3), {"padding": (1, 0, 1), "stride": (2, 1, 2)}),
        (2, {"stride": 3, "dilation": (3, 1, 2), "groups": 2}),
        (3, {"padding": "same"}),
        (1, {"bias": False}),
    ],
)
def test_convolution_in_slabs(
    kernel: int | tuple[int, ...], options: dict, monkeypatch: pytest.MonkeyPatch
):
    conv = nn.Conv3d(4, 6, kernel, **options).double()
    x = torch.rand(2, 4, 11, 7, 8, dtype=torch.float64)
    expected = conv(x)
    plane = 4 * conv.weight[0, 0].numel() * 7 * 8  # elements of its windows
    seen: list[int] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            output = function(*args, **(kwargs or {}))
            if function is torch.conv3d:
                seen.append(output.shape[2])
            return output

    for planes in (1, 2, 100):
        monkeypatch.setattr(export, "_WINDOWS", planes * plane)
        with Watch():
            found = export._run_float64(conv, x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        if conv.padding != "same":
            assert max(seen) <= planes
            assert sum(seen) == expected.shape[2]
        seen.clear()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{"padding": 3}, {"stride": 2, "dilation": 2, "bias": False}, {"padding": 1, "stride": 3}],
)
def test_depthwise_convolution(axes: int, options: dict):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    conv = kind(4, 4, (4, 3, 1)[:axes], groups=4, **options).double()
    x = torch.rand(2, 4, *(13, 9, 8)[:axes], dtype=torch.float64)
    torch.testing.assert_close(export._run_float64(conv, x), conv(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [2e-3, float("nan")])
def test_different_logits_are_refused(shift: float, tmp_path: Path):
    file = tmp_path / "model.ts"
    file.write_text("earlier")
    with pytest.raises(InputError, match=r"differs from the network in float64 by (0\.002|nan)"):
        export_network(Shifted(shift), [4, 4], "torchscript", file)
    assert file.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [file]
    export_network(Shifted(1e-6), [4, 4], "torchscript", file)
    assert file.read_bytes().startswith(b"PK")


def test_bad_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    network, _ = build("ELANResMSCAUNet")
    with pytest.raises(InputError, match="format is 'tensorrt'; allowed are torchscript"):
        export_network(network, [16] * 3, "tensorrt", tmp_path / "model")
    with pytest.raises(InputError, match=r"size is \[8, 8, 8\].*allowed is 16 and more"):
        export_network(network, [8] * 3, "torchscript", tmp_path / "model")
    with pytest.raises(InputError, match=r"/none/model cannot be written"):
        export_network(Shifted(0), [4, 4], "torchscript", tmp_path / "none/model")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"onnxscript .* cannot be imported; `pip install onnx"):
        export_network(network, [16] * 3, "onnx", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("groups", [None, 1, 4])
def test_norms_summed_axis_by_axis(groups: int | None):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 8, 3, 5, 4, generator=generator, dtype=torch.float64)
    weight, bias = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    if groups is None:
        expected = torch.instance_norm(x, weight, bias, None, None, True, 0.0, 1e-5, False)
        found = export._instance_norm(x, weight, bias, None, None, True, 0.0, 1e-5, False)
    else:
        expected = torch.group_norm(x, groups, weight, bias)
        found = export._group_norm(x, groups, weight, bias)
    torch.testing.assert_close(found, expected)


def test_norm_of_a_volume_is_as_exact_in_onnx(tmp_path: Path):
    norm = nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU(), nn.InstanceNorm3d(4, affine=True))
    with torch.no_grad():
        norm[0].weight.fill_(0.1)
        norm[0].bias.fill_(2.0)  # far from zero, where onnxruntime's own is off by 1e-2
    assert export_network(norm, [64, 64, 64], "onnx", tmp_path / "norm.onnx") <= 2e-4


class ChannelsLastNorm(nn.Module):
    """A group norm as torch computes it in float32 on the CPU, off by a tenth and more."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 8, 1)
        nn.init.constant_(self.conv.weight, 0.1)
        nn.init.constant_(self.conv.bias, 2.0)
        self.norm = nn.GroupNorm(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).contiguous(memory_format=torch.channels_last_3d)
        return self.norm(x).contiguous()


def test_norm_that_torch_itself_gets_wrong(tmp_path: Path):
    assert export_network(ChannelsLastNorm(), [48] * 3, "onnx", tmp_path / "norm.onnx") <= 1e-4


@pytest.mark.slow
def test_lightm_unet_of_a_volume(tmp_path: Path):
    """It amplifies what float32 rounds, and was refused for torch's group norm."""
    torch.manual_seed(0)
    network = LightMUNet(3, 1, 3, 8, (1, 1), (1,))
    assert export_network(network, [64] * 3, "onnx", tmp_path / "model.onnx") < 0.03
