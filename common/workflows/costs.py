"""What networks cost: parameters, FLOPs, seconds and memory, as a bundle's configs build them."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ..checkpoints import check_checkpoint, check_setting, load_settings, save_checkpoint
from ..data import check_output_folder
from ..errors import InputError, by_axis, first_line, input_error_in, listed, nearest
from ..files import read_json, write_json
from ..measure import (
    Failed,
    Refused,
    in_own_process,
    in_use,
    machine,
    now,
    peak_in_use,
    repeated_seconds,
    silenced,
)
from ..ops import WholeConvolutions, count_flops, fastest_backend
from .precision import check_precision

FILE = "costs.json"
SPACING = (0.75, 0.75, 1.0)  # mm, of a volume that is made up: about the median of LiTS
_PRELOAD = ["monai.bundle", "monai.engines", "monai.networks.nets", "common.workflows"]
_SIZES = ("patch_size", "image_size")  # what a bundle calls what its network sees at once
_PER_CASE = ("patches_per_case", "slices_per_case")
# What makes of a label's classes what the loss takes.
_REGIONS = ("common.transforms.NestedRegionsd", "common.transforms.LabelRegionsd")


@dataclasses.dataclass
class Costs:
    """What a network costs on a machine; None is what was not measured, as `not_measured` says.

    Attributes:
        network: its class.
        machine: processor or GPU, threads, torch.
        scan_backend: what "auto" takes for selective scans there.
        precision: of forward pass and training step, by train.json.
        parameters: all of them; of a cascade of both stages.
        trainable_parameters: those that ask for a gradient.
        input_size: voxels of a patch or pixels of a slice, without batch and channels.
        flops: of a forward pass of one patch, see `common.ops.flops`.
        macs: multiply-adds, half of `flops`.
        batch: patches of `seconds_forward`.
        seconds_forward: of a forward pass in eval mode.
        training_batch: patches of a training step, as train.json has it.
        seconds_training_step: of forward pass, loss, backward pass and the optimiser's step of
            MONAI's trainer; the batch is on the device.
        volume: what `seconds_volume` is of: the file's name; or the size, and spacing in mm, of one
            that is made up; and the precision, by inference.json.
        seconds_volume: from the image's file to the mask's, by inference.json.
        repeats: each time is the median of so many, after one that warms up.
        base_memory_bytes: what Python and its packages take, of each of the next three on a CPU.
        peak_memory_bytes: of the forward pass, in a process of its own: all that was resident; on
            CUDA what torch allocated.
        peak_memory_training_bytes: of training steps.
        peak_memory_volume_bytes: of a volume.
        not_measured: names of the fields above that are None for a failure, and why.
    """

    network: str
    machine: str
    scan_backend: str
    precision: str
    parameters: int
    trainable_parameters: int
    input_size: list[int]
    flops: int | None
    macs: int | None
    batch: int
    seconds_forward: float | None = None
    training_batch: int | None = None
    seconds_training_step: float | None = None
    volume: dict[str, Any] | None = None
    seconds_volume: float | None = None
    repeats: int = 0
    base_memory_bytes: int | None = None
    peak_memory_bytes: int | None = None
    peak_memory_training_bytes: int | None = None
    peak_memory_volume_bytes: int | None = None
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)


class _Job(NamedTuple):
    """A network to measure; plain data, for processes."""

    bundle: Path
    compared: str | None  # of configs/networks
    checkpoint: Path | None
    device: str
    batch: int
    repeats: int
    overrides: dict[str, Any]
    volume: list[int] | Path | None


def profile(
    bundle: str | Path | Sequence[str | Path] = ".",
    output: str | Path | None = None,
    networks: str | Sequence[str] | None = None,
    checkpoint: str | Path | None = None,
    volume: Sequence[int] | str | Path | None = None,
    device: str | None = None,
    batch: int = 1,
    repeats: int = 5,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Costs]:
    """Measure what networks cost: see `Costs`, which says what each number is.

    A network is built as training builds it, with values at random; each measurement has a process
    of its own. Of a cascade it is the network of the `stage` that train.json trains, while a
    volume goes through both; where the first finds no liver the second has nothing to do, so give
    a checkpoint and an image there.

    Args:
        bundle: the bundle's folder, or several, of which each network is measured.
        output: a folder, where costs.json is written; of several networks each has a folder of its
            name in it.
        networks: of configs/networks, by their names, to be measured beside the bundle's own.
        checkpoint: whose settings count, as in inference; a volume goes through its weights.
        volume: an image's file; or the size of one that is made up, in voxels. None measures none.
        device: "cpu", "cuda" or "cuda:1"; None is CUDA where there is a GPU.
        batch: patches of a forward pass.
        repeats: of each measurement, after one that warms up.
        overrides: values of train.json's and inference.json's ids, such as
            ``{"patch_size": [96, 96, 96]}``.

    Returns:
        Costs by name: that of the bundle's folder, or of the file in configs/networks.

    Raises:
        InputError: there is no such bundle, network, checkpoint, image or device; an override is
            of nothing; or a network cannot be built, or not take its input's size.
    """
    jobs = _jobs(bundle, networks, checkpoint, volume, device, batch, repeats, overrides)
    found = {name: _counted(job) for name, job in jobs.items()}  # what is refused, is so before all
    if output is not None:
        check_output_folder(output)
    bar = tqdm(jobs.items(), desc="networks", disable=None)
    for name, job in bar:
        bar.set_postfix_str(name)
        _measure(job, found[name])
        if output is not None:
            folder = Path(output) / name if len(jobs) > 1 else Path(output)
            _write(found[name], folder)
    return found


def cost_rows(costs: Mapping[str, Costs]) -> list[list[str]]:
    """A table's header, then a row for each network; empty where there is no number."""
    rows = [
        [
            *("network", "input", "M parameters", "trainable", "GFLOP", "GMAC", "ms an image"),
            *("s a step", "s a volume", "GiB", "GiB training", "GiB volume"),
        ]
    ]
    for name, cost in costs.items():
        forward = cost.seconds_forward
        rows.append(
            [
                name,
                by_axis(cost.input_size),
                f"{cost.parameters / 1e6:.3f}",
                f"{cost.trainable_parameters / 1e6:.3f}",
                _cell(cost.flops, 1e-9, ".2f"),
                _cell(cost.macs, 1e-9, ".2f"),
                _cell(forward, 1e3 / cost.batch, ".4g"),
                _cell(cost.seconds_training_step, 1, ".3g"),
                _cell(cost.seconds_volume, 1, ".3g"),
                _cell(cost.peak_memory_bytes, 2**-30, ".2f"),
                _cell(cost.peak_memory_training_bytes, 2**-30, ".2f"),
                _cell(cost.peak_memory_volume_bytes, 2**-30, ".2f"),
            ]
        )
    return rows


def _cell(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


def _jobs(
    bundle: str | Path | Sequence[str | Path],
    networks: str | Sequence[str] | None,
    checkpoint: str | Path | None,
    volume: Sequence[int] | str | Path | None,
    device: str | None,
    batch: int,
    repeats: int,
    overrides: Mapping[str, Any] | None,
) -> dict[str, _Job]:
    """What is to be measured, by its name, once all that is given has been looked at."""
    bundles = [Path(path).resolve() for path in _several(bundle)]
    names = _several(networks) if networks is not None else []
    for name, value in (("batch", batch), ("repeats", repeats)):
        if type(value) is not int or value < 1:
            raise InputError(f"{name} is {value!r}; allowed are whole numbers from 1.")
    for kind, given in (("bundle", [path.name for path in bundles]), ("network", names)):
        if len(set(given)) < len(given):
            raise InputError(f"A {kind} is named twice: {listed(given)}; allowed is once.")
    if len(bundles) > 1 and (names or checkpoint is not None):
        raise InputError(
            f"{len(bundles)} bundles are named; allowed with networks or a checkpoint is one."
        )
    if names and checkpoint is not None:
        raise InputError(
            f"checkpoint is {checkpoint}, which has its own network; allowed with networks is none."
        )
    usual = _Job(
        bundles[0],
        None,
        None if checkpoint is None else Path(checkpoint).resolve(),
        _device(device),
        batch,
        repeats,
        dict(overrides or {}),
        _volume(volume),
    )
    for path in bundles:
        _check_configs(path, names, usual.overrides)
    jobs = {path.name: usual._replace(bundle=path) for path in bundles}
    return jobs | {name: usual._replace(compared=name) for name in names}


def _several(value: Any) -> list[Any]:
    """Names as they are typed, a,b; or in a list."""
    if isinstance(value, str) and not Path(value).is_dir():
        return value.split(",")
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    allowed += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if device not in allowed:
        raise InputError(f"device is {device!r}; allowed on this machine are {', '.join(allowed)}.")
    return device


def _volume(volume: Sequence[int] | str | Path | None) -> list[int] | Path | None:
    if volume is None:
        return None
    if isinstance(volume, (str, Path)):
        path = Path(volume).resolve()
        if not path.exists():
            raise InputError(f"There is no image {path}; allowed are a file and a size in voxels.")
        return path
    size: list[Any] = list(volume) if isinstance(volume, (list, tuple)) else [volume]
    if len(size) not in (2, 3) or any(type(n) is not int or n < 1 for n in size):
        raise InputError(
            f"volume is {volume}; allowed are an image's file, and two or three whole numbers "
            "from 1."
        )
    return size


def _check_configs(bundle: Path, networks: Sequence[str], overrides: Mapping[str, Any]) -> None:
    configs = bundle / "configs"
    known: set[str] = set()
    for file in ("train", "inference"):
        if not (configs / f"{file}.json").is_file():
            raise InputError(f"There is no {configs / file}.json; needed is a bundle, by --bundle.")
        known |= read_json(configs / f"{file}.json").keys()
    for id_ in overrides:
        if (first := id_.partition("#")[0]) not in known:
            near = nearest(first, sorted(known))
            raise InputError(f"{bundle.name} has no {id_} in train.json or inference.json{near}.")
    there = sorted(file.stem for file in configs.glob("networks/*.json"))
    for name in networks:
        if name not in there:
            raise InputError(
                f"networks has {name!r}; allowed are those of {configs / 'networks'}: "
                f"{', '.join(there) or 'none'}."
            )


def _counted(job: _Job) -> Costs:
    try:
        return in_own_process(_count, job, preload=_PRELOAD)
    except Refused as refusal:
        raise InputError(str(refusal)) from refusal
    except Failed as failure:
        raise InputError(f"{_name(job)} cannot be measured ({failure}).") from failure


def _name(job: _Job) -> str:
    return job.compared or job.bundle.name


def _measure(job: _Job, costs: Costs) -> None:
    """Fill in what takes time, or why it could not be measured."""
    runs: dict[str, Callable[[_Job], dict[str, Any]]] = {
        "seconds_forward": partial(in_own_process, _forward, preload=_PRELOAD),
        "seconds_training_step": partial(in_own_process, _train, preload=_PRELOAD),
    }
    if job.volume is not None:
        runs["seconds_volume"] = _segment
    for field, run in runs.items():
        try:
            values = run(job)
        except Failed as failure:
            costs.not_measured[field] = str(failure)
        else:
            for name, value in values.items():
                setattr(costs, name, value)


def _segment(job: _Job) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        in_own_process(_make_files, job, folder, preload=_PRELOAD)
        return in_own_process(_infer, job, folder, preload=_PRELOAD)


def _write(costs: Costs, folder: Path) -> None:
    check_output_folder(folder)
    try:
        write_json(folder / FILE, dataclasses.asdict(costs))
    except OSError as error:
        raise InputError(f"{folder / FILE} cannot be written ({error}).") from error


# What follows runs in processes of its own.


def _training(job: _Job, **globals: Any) -> ConfigParser:
    """The config of a training of the network, whose expressions know `globals`."""
    configs = job.bundle / "configs"
    files = [configs / "train.json"]
    if job.compared is not None:
        files.append(configs / f"networks/{job.compared}.json")
    parser = ConfigParser(globals=globals)
    parser.read_config([str(file) for file in files])
    if job.checkpoint is not None:
        for id_, value in load_settings(job.checkpoint).items():
            if id_ in parser:
                check_setting(id_, value)
                parser[id_] = value
    parser.update({id_: x for id_, x in job.overrides.items() if id_.partition("#")[0] in parser})
    parser["device"] = job.device
    return parser


def _input_shape(parser: ConfigParser) -> tuple[int, list[int]]:
    """Channels and size of what the network takes."""
    channels, size = (
        parser.get_parsed_content(f"network_input#{name}") for name in ("channels", "size")
    )
    return channels, list(size)


def _prepare(job: _Job) -> int:
    """Make ready to measure; bytes that are in use before."""
    torch.manual_seed(0)
    if job.device != "cpu":
        torch.cuda.set_device(torch.device(job.device))
    return in_use(job.device)


def _count(job: _Job) -> Costs:
    with silenced():
        try:
            parser = _training(job)
            network: nn.Module = parser.get_parsed_content("network_def")
            precision = parser.get_parsed_content("precision")
            channels, size = _input_shape(parser)
        except Exception as error:
            if input_error_in(error) is not None:
                raise
            raise InputError(f"{_name(job)} cannot be built ({_reason(error)}).") from error
        check_precision(precision, job.device)
        if job.checkpoint is not None:
            check_checkpoint(job.checkpoint, network)
        flops, not_measured = None, {}
        try:
            flops = count_flops(network, (1, channels, *size))
        except Exception as error:
            reason = _reason(error)
            # Of tensors without values, which the meta device has, some networks ask for them.
            if not isinstance(error, NotImplementedError) and "meta" not in reason:
                of = next(name for name in _SIZES if name in parser)
                raise InputError(
                    f"{of} is {by_axis(size)}, which {_name(job)} does not take ({reason}); "
                    f"allowed is another, by --{of}."
                ) from error
            not_measured["flops"] = reason
    parameters = list(network.parameters())
    return Costs(
        network=type(network).__name__,
        machine=machine(job.device, torch.get_num_threads()),
        scan_backend=fastest_backend(torch.device(job.device).type, torch.float32),
        precision=precision,
        parameters=sum(p.numel() for p in parameters),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        input_size=size,
        flops=flops,
        macs=None if flops is None else flops // 2,
        batch=job.batch,
        repeats=job.repeats,
        not_measured=not_measured,
    )


def _reason(error: BaseException) -> str:
    """What led to an error: MONAI's own says what it built, and not what is wrong with it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _forward(job: _Job) -> dict[str, Any]:
    with silenced():
        base = _prepare(job)
        parser = _training(job)
        network = parser.get_parsed_content("network").eval()
        channels, size = _input_shape(parser)
        amp = parser.get_parsed_content("amp")
        options = parser.get_parsed_content("train#trainer#amp_kwargs")
        image = torch.randn(job.batch, channels, *size, device=job.device)

        autocast = torch.autocast(image.device.type, **options) if amp else nullcontext()

        def run() -> None:
            with torch.no_grad(), autocast, WholeConvolutions():
                network(image)

        taken = repeated_seconds(run, job.device, job.repeats)
    return {
        "seconds_forward": taken,
        "base_memory_bytes": base,
        "peak_memory_bytes": peak_in_use(job.device),
    }


def _train(job: _Job) -> dict[str, Any]:
    with silenced():
        _prepare(job)
        batches: list[dict[str, Tensor]] = []
        times = _Steps(job.device)
        parser = _training(job, batches_=batches, times_=times)
        trainer = {
            **dict.fromkeys(("postprocessing", "key_train_metric")),
            "train_data_loader": "$batches_",
            "train_handlers": "$[times_]",
            "max_epochs": 1,
            "epoch_length": job.repeats + 1,
            "decollate": False,
        }
        for name, value in trainer.items():
            parser[f"train#trainer#{name}"] = value
        number = parser.get_parsed_content("batch_size")
        for name in _PER_CASE:
            if name in parser:
                number *= parser.get_parsed_content(name)
        channels, size = _input_shape(parser)
        batch = {
            "image": torch.randn(number, channels, *size, device=job.device),
            "label": torch.stack([_label(parser, size)] * number).to(job.device),
        }
        batches += [batch] * (job.repeats + 1)
        parser.get_parsed_content("train#trainer").run()
    return {
        "training_batch": number,
        "seconds_training_step": statistics.median(times.seconds[1:]),
        "peak_memory_training_bytes": peak_in_use(job.device),
    }


class _Steps:
    """Handler of a trainer: seconds of each iteration, without what loads its batch."""

    def __init__(self, device: str) -> None:
        self.seconds: list[float] = []
        self._device = device
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)

    def _start(self, engine: Engine) -> None:
        self._began = now(self._device)

    def _end(self, engine: Engine) -> None:
        self.seconds.append(now(self._device) - self._began)


def _label(parser: ConfigParser, size: Sequence[int]) -> Tensor:
    """Classes at random, (1, ...), as the loss takes them: of regions a channel each."""
    classes = parser.get_parsed_content("num_classes")
    item = {"label": torch.randint(classes, (1, *size)).float()}
    for index, step in enumerate(parser["train#preprocessing#transforms"]):
        if isinstance(step, dict) and step.get("_target_") in _REGIONS:
            item = parser.get_parsed_content(f"train#preprocessing#transforms#{index}")(item)
    return item["label"]


def _make_files(job: _Job, folder: str) -> None:
    """An image, if none is given, and the checkpoint of a training that learnt nothing."""
    with silenced():
        _prepare(job)
        parser = _training(job)
        if isinstance(job.volume, list):
            _write_image(_image(job, folder), job.volume, parser.get_parsed_content("in_channels"))
        if job.checkpoint is None:
            weights = parser.get_parsed_content("network_def").state_dict()
            for name, x in weights.items():
                if name.endswith("num_batches_trained"):
                    x.fill_(1)  # a cascade refuses a network that was never trained
            weights.settings = parser.get_parsed_content("settings")  # as of a training
            save_checkpoint(weights, _checkpoint(job, folder))


def _image(job: _Job, folder: str) -> Path:
    if isinstance(job.volume, Path):
        return job.volume
    return Path(folder, "image.png" if len(job.volume or ()) == 2 else "image.nii")


def _checkpoint(job: _Job, folder: str) -> Path:
    return job.checkpoint or Path(folder, "model.pt")


def _write_image(path: Path, size: Sequence[int], channels: int) -> None:
    """Smooth values at random, about those of the abdomen in CT, or of a radiograph."""
    coarse = torch.randn(1, channels, *(max(n // 24, 2) for n in size))
    mode = "bilinear" if len(size) == 2 else "trilinear"
    values = F.interpolate(coarse, size=tuple(size), mode=mode)[0]
    if len(size) == 2:
        grey = (values * 40 + 128).clamp(0, 255).byte().movedim(0, -1).squeeze(-1)
        Image.fromarray(grey.numpy()).save(path)
        return
    hounsfield = (values * 100 + 90).short().movedim(0, -1).squeeze(-1)
    x, y, z = SPACING
    nib.save(nib.Nifti1Image(hounsfield.numpy(), np.diag([-x, -y, z, 1])), path)


def _infer(job: _Job, folder: str) -> dict[str, Any]:
    file = str(job.bundle / "configs/inference.json")
    config = ConfigParser()
    config.read_config(file)
    known = set(config.config)
    if job.checkpoint is None:  # the one that was made has these
        known -= {id_.partition("#")[0] for id_ in _training(job)["settings#names"]}
    options = {id_: x for id_, x in job.overrides.items() if id_.partition("#")[0] in known}
    image = _image(job, folder)
    options |= {
        "device": job.device,
        "dataset_dir": str(image),
        "checkpoint": str(_checkpoint(job, folder)),
        "output_dir": str(Path(folder, "masks")),
    }
    with silenced():
        _prepare(job)
        taken = repeated_seconds(
            lambda: run_bundle(config_file=file, **options), job.device, job.repeats
        )
        config.update(options)
        precision = config.get_parsed_content("precision")
    volume: dict[str, Any] = {"file": image.name}
    if isinstance(job.volume, list):
        volume = {"size": job.volume}
        if len(job.volume) == 3:
            volume["spacing"] = list(SPACING)
    return {
        "seconds_volume": taken,
        "volume": volume | {"precision": precision},
        "peak_memory_volume_bytes": peak_in_use(job.device),
    }
