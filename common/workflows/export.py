"""Trained networks as files that run without this package: TorchScript, torch.export, ONNX."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.torchscript_utils import save_net_with_metadata
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from ..errors import InputError, first_line
from ..files import replacing

FORMS = ("torchscript", "torch_export", "onnx")
TOLERANCE = 1e-4  # of a logit; of the largest one, where that is above 1
# Of what `_shaken` changes. Of LightM-UNet with its initial weights, which amplifies most, right
# float32 was off by 0.5 to 5 times that, and norms that sum a volume in one float by 9 to 48.
_SHAKEN = 8
_OPSET = 18
_WINDOWS = 1 << 25  # elements of a convolution's windows at a time: 256 MB in float64


def export_network(
    network: nn.Module,
    size: Sequence[int],
    form: str,
    output: str | Path,
    metadata: Mapping[str, Any] | None = None,
    configs: Mapping[str, Any] | None = None,
) -> float:
    """Write a network in one of the `FORMS`, once its logits are near the network's in float64.

    The image is (b, channels, *size), any b; TorchScript takes other sizes too. The network is in
    eval mode and on the CPU afterwards.

    Args:
        network: from an image to logits, or in training to more.
        size: of an image along each axis.
        form: "torchscript" keeps metadata and configs in the file, as MONAI's ``ckpt_export``;
            "torch_export" is read by ``torch.export.load``; "onnx" has the input "image" and the
            output "pred" (extra: onnx).
        output: the file.
        metadata, configs: a bundle's metadata, and its configs by file name.

    Returns:
        The largest difference of a logit, for an image of noise.

    Raises:
        InputError: the form is another, a package for it is missing, the size does not suit the
            network, the file cannot be written, or the difference is above `TOLERANCE` and above
            what float32 can help.
    """
    _check_form(form)
    network = network.cpu().eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, _in_channels(network), *size, generator=generator)
    with torch.no_grad(), tqdm(total=3, desc="float64") as progress:
        exact = _in_float64(network)
        try:
            expected = _run_float64(exact, image.double())
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"size is {list(size)}, which the network refuses ({error}); allowed is a size "
                "that it was made for."
            ) from error
        progress.update()
        progress.set_description("export")
        try:
            with replacing(output) as partial:
                if form == "torchscript":
                    _write_torchscript(
                        network, partial, f"{Path(output).stem}.ts", metadata, configs
                    )
                else:
                    program = _program(network, image)
                    {"torch_export": _write_program, "onnx": _write_onnx}[form](program, partial)
                progress.update()
                progress.set_description("check")
                difference = _largest(_RUN[form](partial, image) - expected)
                allowed = TOLERANCE * max(1, _largest(expected))
                if difference > allowed:
                    changed = _run_float64(*_shaken(exact, image.double())) - expected
                    allowed = max(allowed, _SHAKEN * _largest(changed))
                if not difference <= allowed:
                    raise InputError(
                        f"The {form} differs from the network in float64 by {difference:.2g} in a "
                        f"logit; allowed is {allowed:.2g}, so {output} is not written."
                    )
                progress.update()
        except OSError as error:
            raise InputError(f"The export {output} cannot be written ({error}).") from error
    return difference


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise InputError(f"format is {form!r}; allowed are {', '.join(FORMS)}.")
    if form != "torchscript" and not hasattr(torch.compiler, "is_exporting"):
        raise InputError(f"torch is {torch.__version__}; allowed for {form} is one from 2.8.")
    packages = ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ()
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"format is onnx, but {' and '.join(missing)} cannot be imported; "
            "`pip install onnx onnxscript onnxruntime` installs all that it needs."
        )


def _in_channels(network: nn.Module) -> int:
    """Of the image: what the first convolution takes."""
    for module in network.modules():
        if isinstance(module, _ConvNd):
            return module.in_channels
    raise InputError(f"{type(network).__name__} has no convolution; allowed is one that has.")


def _in_float64(network: nn.Module) -> nn.Module:
    """A copy whose logits are the truth: float32's may be the ones that are wrong."""
    exact = copy.deepcopy(network).double()
    for module in exact.modules():
        if isinstance(getattr(module, "backend", None), str):
            module.backend = "auto"  # type: ignore[assignment]  # a named one may be for float32
    return exact


def _shaken(network: nn.Module, image: Tensor) -> tuple[nn.Module, Tensor]:
    """The network and the image, with an error of float32's size in all that float32 would store.

    What that changes, no float32 arithmetic can be blamed for; a network that amplifies it, such as
    one with norms of nearly constant maps, cannot be as exact as others.
    """
    generator = torch.Generator().manual_seed(1)

    def shake(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        return x + x * (2 * noise - 1) * 2**-24

    for x in network.parameters():
        x.copy_(shake(x))
    for module in network.modules():
        module.register_forward_hook(lambda module, inputs, output: shake(output))
    return network, shake(image)


def _run_float64(network: nn.Module, image: Tensor) -> Tensor:
    with _Convolutions():
        return network(image)


class _Convolutions(TorchFunctionMode):
    """Convolutions by other ways than torch's in float64.

    That copies the window of every voxel, which for a whole volume is tens of GB, and takes one
    channel after the other where they are separate, which for Mamba's takes longer than the scan.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in (torch.conv1d, torch.conv2d, torch.conv3d):
            return _convolution(function, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _convolution(
    function: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """One of torch's three, by its own arguments."""
    if isinstance(padding, str):  # no network of ours has it
        return function(x, weight, bias, stride, padding, dilation, groups)
    axes = weight.dim() - 2
    steps, pads, spreads = (ensure_tuple_rep(size, axes) for size in (stride, padding, dilation))
    if groups > 1 and weight.shape[:2] == (groups, 1):
        return _depthwise(x, weight, bias, steps, pads, spreads)
    if axes == 3:
        return _slabs(x, weight, bias, steps, pads, spreads, groups)
    return function(x, weight, bias, steps, pads, spreads, groups)


def _depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The sum of shifted maps, all channels at once."""
    per_channel = [1] * len(stride)
    x = F.pad(x, [pad for pad in reversed(padding) for _ in range(2)])
    kernel = weight.shape[2:]
    size = [
        (n - spread * (taps - 1) - 1) // step + 1
        for n, taps, step, spread in zip(x.shape[2:], kernel, stride, dilation, strict=True)
    ]
    y = x.new_zeros(*x.shape[:2], *size)
    if bias is not None:
        y += bias.view(-1, *per_channel)
    taps = itertools.product(*map(range, kernel))
    for tap, factor in zip(taps, weight.flatten(1).unbind(1), strict=True):
        shifted = [
            slice(at * spread, at * spread + (n - 1) * step + 1, step)
            for at, n, step, spread in zip(tap, size, stride, dilation, strict=True)
        ]
        window = (slice(None), slice(None), *shifted)
        y.addcmul_(x[window], factor.view(-1, *per_channel))
    return y


def _slabs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A few planes of the output at a time."""
    pad, *pads = padding
    x = F.pad(x, (0, 0, 0, 0, pad, pad))
    reach = dilation[0] * (weight.shape[2] - 1) + 1
    planes = (x.shape[2] - reach) // stride[0] + 1
    windows = x.shape[1] * weight[0, 0].numel() * x[0, 0, 0].numel()  # elements, of a plane
    some = max(1, _WINDOWS // windows)
    return torch.cat(
        [
            torch.conv3d(
                x[:, :, start * stride[0] : (start + some - 1) * stride[0] + reach],
                weight,
                bias,
                stride,
                (0, *pads),
                dilation,
                groups,
            )
            for start in range(0, max(1, planes), some)
        ],
        2,
    )


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _program(network: nn.Module, image: Tensor) -> torch.export.ExportedProgram:
    pair = image.expand(2, *image.shape[1:])  # what is traced with one item would be for one only
    batch = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(network, (pair,), dynamic_shapes=batch)


def _write_torchscript(
    network: nn.Module,
    path: Path,
    name: str,
    metadata: Mapping[str, Any] | None,
    configs: Mapping[str, Any] | None,
) -> None:
    files = {name: json.dumps(config).encode() for name, config in (configs or {}).items()}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        # torch names the archive's folder after the file, and MONAI Deploy looks for that name.
        named = Path(folder) / name
        save_net_with_metadata(
            _scripted(network),
            str(named),
            include_config_vals=False,
            meta_values=metadata,
            more_extra_files=files,
        )
        named.replace(path)


def _scripted(network: nn.Module) -> torch.jit.ScriptModule:
    try:
        return torch.jit.script(network)
    except RuntimeError as error:  # some of MONAI's source is not in that language
        raise InputError(
            f"{type(network).__name__} cannot be written as TorchScript ({first_line(error)}); "
            "allowed for it are torch_export and onnx."
        ) from error


def _write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    with path.open("wb") as stream:
        torch.export.save(program, stream)


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> None:
    program = program.run_decompositions(
        {
            torch.ops.aten.group_norm.default: _group_norm,
            torch.ops.aten.instance_norm.default: _instance_norm,
        }
    )
    with quiet("onnx_ir"):  # it warns of each scan that has no output but its state
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=["pred"],
            verbose=False,
        )
    assert exported is not None
    exported.save(path)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """In it, a logger of that name says errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# onnxruntime sums a whole volume in one float: logits would differ by 1e-3. Summed axis by axis,
# they are as exact as torch's.
def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    y = _normalised(x.unflatten(1, [groups, -1]), x.dim() - 1, eps).flatten(1, 2)
    return _affine(y, weight, bias)


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats:
        return NotImplemented
    return _affine(_normalised(x, x.dim() - 2, eps), weight, bias)


def _normalised(x: Tensor, axes: int, eps: float) -> Tensor:
    """Over the last so many axes."""
    mean = x
    for axis in range(1, axes + 1):
        mean = mean.mean(-axis, keepdim=True)
    x = x - mean
    variance = x * x
    for axis in range(1, axes + 1):
        variance = variance.mean(-axis, keepdim=True)
    return x * torch.rsqrt(variance + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Per channel."""
    ones = [1] * (x.dim() - 2)
    if weight is not None:
        x = x * weight.view(-1, *ones)
    return x if bias is None else x + bias.view(-1, *ones)


def _run_torchscript(path: Path, image: Tensor) -> Tensor:
    return torch.jit.load(path)(image)


def _run_program(path: Path, image: Tensor) -> Tensor:
    with path.open("rb") as stream:
        return torch.export.load(stream).module()(image)


def _run_onnx(path: Path, image: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["pred"], {"image": image.numpy()})[0])


_RUN = {"torchscript": _run_torchscript, "torch_export": _run_program, "onnx": _run_onnx}
