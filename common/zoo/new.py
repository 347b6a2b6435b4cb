"""A new bundle, made of the pieces of those that there are, for somebody to make their own."""

from __future__ import annotations

import copy
import inspect
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from torch import Tensor, nn
from tqdm import tqdm

from .. import __version__
from ..checkpoints import check_setting, class_named
from ..collection import collection
from ..errors import InputError, by_axis, first_line, nearest
from .contract import (
    FILES,
    READING,
    RUNNING,
    Config,
    as_text,
    compared,
    config,
    name_problems,
)
from .new_page import MARK, About, marked, page, to_describe
from .verify import verify

_VOLUMES, _PICTURES = "liver_ct_lightm_unet_segmentation", "lung_cxr_lightm_unet_segmentation"
_OF_WEIGHTS = ("weights", "weights_license", "reference_prediction")  # which a new one has not
_SIZE = "@network_input#size"
# What networks are told of images and classes, and what of their size where they need it.
_TOLD = {
    "spatial_dims": "@network_input#spatial_dims",
    "in_channels": "@network_input#channels",
    "out_channels": "@out_channels",
}
_TOLD_IF_NEEDED = {"img_size": _SIZE, "input_image_size": _SIZE}
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64)  # of voxels, that networks halve
_WIDE = 64  # voxels along an axis, at least: a multiple of all
# Of volumes that are no CTs, as the bundle's page has it for MR.
_NORMALISED: Config = {
    "_target_": "NormalizeIntensityd",
    "keys": "image",
    "nonzero": True,
    "channel_wise": True,
}


class _Kind(NamedTuple):
    """What a word in a bundle's name says of its images.

    Attributes:
        modality: as DICOM calls it.
        called: as people call it.
        like: the bundle whose pieces are taken.
    """

    modality: str
    called: str
    like: str


_KINDS = {
    "ct": _Kind("CT", "CT", _VOLUMES),
    "mr": _Kind("MR", "MR", _VOLUMES),
    "pet": _Kind("PT", "PET", _VOLUMES),
    "cxr": _Kind("CR", "chest X-rays", _PICTURES),
    "xr": _Kind("DX", "X-rays", _PICTURES),
    "us": _Kind("US", "ultrasound", _PICTURES),
}
_WORDS = r"[a-z0-9]+(?:_[a-z0-9]+)*"
_CLASS = re.compile(r"[^\W_][\w +()/-]*")
_NAME = re.compile(rf"({_WORDS}?)_({'|'.join(_KINDS)})_({_WORDS})_segmentation")


class Made(NamedTuple):
    """A new bundle.

    Attributes:
        folder: the bundle's.
        to_fill_in: the lines that are marked, as FILE:LINE below it.
    """

    folder: Path
    to_fill_in: list[str]


def new_bundle(
    name: str, network: Any, classes: str | Sequence[str], output: str | Path = "."
) -> Made:
    """Write a bundle that trains at once, with lines to fill in on its page and in its metadata.

    Its pieces are those of the collection's bundle for volumes, or for pictures: transforms,
    augmentation, inference, evaluation, networks to compare with, and the recipe, unless the
    network comes with one. What is written passes `verify`.

    Args:
        name: of its folder, ``<anatomy>_<modality>_<network>_segmentation``. The modality says
            what its images are: ct, mr and pet are volumes, cxr, xr and us are pictures.
        network: the name of a file in ``configs/networks``, with its paper's recipe, such as
            "segresnet"; a class of ``monai.networks.nets`` or ``common.networks``, such as
            "SegResNet"; or one with arguments, {"_target_": "UNet", "channels": [16, 32],
            "strides": [2]}, of which those that tell of axes, channels and classes may be left out.
        classes: names, without the background's, in the order of their values in labels, from 1; as
            text with commas, too.
        output: the folder that will have the bundle's.

    Raises:
        InputError: the name is not as above, or its folder is there; there is no such network, it
            lacks arguments, has some that might run code, or does not make logits of these classes,
            in training these alone; classes are no names; this package came without bundles; or the
            folder cannot be written. Nothing is left.
    """
    found = _NAME.fullmatch(name)
    if not found:
        raise InputError(
            f"The name is {name!r}; allowed are such as spleen_ct_segresnet_segmentation: "
            "<anatomy>_<modality>_<network>_segmentation in small letters and digits, with the "
            f"modality one of {', '.join(_KINDS)}."
        )
    for problem in name_problems(name):
        raise InputError(f"Of the new bundle {problem}.")
    labels = ["background", *_class_names(classes)]
    folder = Path(output).resolve() / name
    if os.path.lexists(folder):
        raise InputError(f"{folder} is there already; allowed is a name that is not.")
    ours = collection()
    if ours is None:
        raise InputError(
            "This package came without the collection's bundles, of whose pieces new ones are "
            "made; needed is a clone of the project, or the project installed by pip."
        )
    kind = _KINDS[found[2]]
    like = ours / "bundles" / kind.like
    dims = 3 if kind.like == _VOLUMES else 2
    ids, recipe = _network(network, like, len(labels), dims)
    about = About(
        anatomy=found[1].replace("_", " "),
        images=kind.called,
        labels=labels,
        network=str(ids["network_def"]["_target_"]).rpartition(".")[2],
        recipe=recipe,
        like=kind.like,
        spatial_dims=dims,
    )
    configs = _configs(like, kind, labels, ids)
    texts = {
        "docs/README.md": page(about, configs["train"]),
        "docs/data_license.txt": f"{MARK}: whose data it is made for, where they are, under which "
        "licence, and what to cite.\n",
        "configs/metadata.json": as_text(_metadata(like, kind, about, ids)),
        **{f"configs/{file}.json": as_text(content) for file, content in configs.items()},
    }
    _write(folder, like, texts)
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*"))}
    return Made(folder, marked(files))


def _class_names(classes: str | Sequence[str]) -> list[str]:
    given = classes.split(",") if isinstance(classes, str) else classes
    names = [str(name).strip() for name in given] if isinstance(given, (list, tuple)) else []
    different = {name.casefold() for name in (*names, "background")}
    sound = all(_CLASS.fullmatch(name) for name in names)
    if not names or not sound or len(different) != len(names) + 1:
        raise InputError(
            f"classes are {classes!r}; allowed are different names, without the background's, such "
            "as liver,tumour, of letters, digits, spaces, and any of _+()/-, first a letter or a "
            "digit."
        )
    return names


def _network(network: Any, like: Path, classes: int, dims: int) -> tuple[Config, str | None]:
    """The ids of train.json that a network sets, and the name of the file that has its recipe.

    Raises:
        InputError: there is no such network, it lacks arguments, or it does not work.
    """
    files = {name.rpartition("/")[2]: name for name in compared(like)}
    if isinstance(network, str) and network in files:
        ids = config(like, files[network])
        return ids | {"network_def": _of_a_bundle(ids["network_def"], dims)}, network
    definition = _of_a_bundle(_definition(network, list(files)), dims)
    multiple = _multiple_of(definition, classes, dims)
    _check_training(definition, multiple, classes, dims, list(files))
    return {"network_input#multiple_of": multiple, "network_def": definition}, None


def _of_a_bundle(definition: Config, dims: int) -> Config:
    """A definition for any bundle, as the bundle's own, which inference has as well."""
    own = {"@network_input#spatial_dims": dims, "@network_input#channels": "@in_channels"}
    return {
        key: own.get(value, value) if isinstance(value, str) else value
        for key, value in definition.items()
    }


def _definition(network: Any, files: Sequence[str]) -> Config:
    """What a config says of a class, with all that its arguments have to be told."""
    given: Any = {"_target_": network} if isinstance(network, str) else network
    target = given.get("_target_") if isinstance(given, dict) else None
    kind = class_named(target)
    if kind is None and "." not in str(target):
        target = f"common.networks.{target}"
        kind = class_named(target)
    if kind is None or not issubclass(kind, nn.Module):
        raise InputError(
            f"There is no network {network!r}; allowed are {', '.join(files)}, classes of "
            "monai.networks.nets and common.networks, such as SegResNet, and these with arguments, "
            "such as {'_target_': 'UNet', 'channels': [16, 32], 'strides': [2]}."
        )
    ours = (*_TOLD.values(), *_TOLD_IF_NEEDED.values())  # which may be given, too
    theirs = {key: x for key, x in given.items() if not (isinstance(x, str) and x in ours)}
    check_setting("network", theirs | {"_target_": target}, given=True)
    parameters = inspect.signature(kind).parameters
    told = {key: x for key, x in _TOLD.items() if key in parameters}
    needed = {key for key, x in parameters.items() if x.default is x.empty}
    told |= {key: x for key, x in _TOLD_IF_NEEDED.items() if key in needed}
    arguments = told | {key: x for key, x in given.items() if key != "_target_"}
    _check_arguments(str(target), parameters, arguments)
    definition: Config = {"_target_": target}
    if str(target).startswith("common."):
        required = {"_target_": "common.zoo.check_version", "required": __version__}
        definition["_requires_"] = required
    return definition | arguments


def _check_arguments(
    target: str, parameters: Mapping[str, inspect.Parameter], arguments: Config
) -> None:
    """See that a class takes arguments, and needs no others; of any it may take, it says itself."""
    kinds = {x.kind for x in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return
    for key in arguments:
        if key not in parameters:
            raise InputError(f"{target} has no argument {key}{nearest(key, parameters)}.")
    for key in ("in_channels", "out_channels"):
        if key not in arguments:
            raise InputError(
                f"{target} has no argument {key}, by which it would be told how many there are; "
                "allowed are networks with in_channels and out_channels."
            )
    missing = [k for k, x in parameters.items() if x.default is x.empty and k not in arguments]
    if missing:
        raise InputError(
            f"{target} needs {' and '.join(missing)}; allowed is a network with its arguments, "
            f"such as {{'_target_': '{target}', '{missing[0]}': ...}}."
        )


def _multiple_of(definition: Config, classes: int, dims: int) -> int:
    """Of how many voxels along an axis an image has to be a multiple: the fewest that work.

    Raises:
        InputError: the network works with none.
    """
    problem = ""
    for multiple in tqdm(_MULTIPLES, "sizes", disable=None):
        # A number that is no multiple of more, and of as many voxels as any network needs.
        size = [_WIDE + multiple] * dims
        problem = _problem(definition, size, classes)
        if not problem:
            return multiple
    raise InputError(
        f"The network {definition['_target_']} makes no logits of {classes} classes, with the "
        f"background, of an image of {by_axis(size)} voxels ({problem}); allowed are networks that "
        "do."
    )


def _check_training(
    definition: Config, multiple: int, classes: int, dims: int, files: Sequence[str]
) -> None:
    """See that a network gives its logits alone in training, too, as the recipe's loss takes them.

    Raises:
        InputError: it gives others with them, or works in evaluation alone.
    """
    size = [max(_WIDE, 2 * multiple)] * dims  # more than one voxel where it is coarsest
    if problem := _problem(definition, size, classes, training=True):
        raise InputError(
            f"The network {definition['_target_']} makes in training no logits of {classes} "
            f"classes of an image of {by_axis(size)} voxels ({problem}), which the loss takes; "
            "allowed are networks that do, with deep_supervision False where they have it, and "
            f"those of configs/networks, which have losses of their own: {', '.join(files)}."
        )


def _problem(definition: Config, size: Sequence[int], classes: int, training: bool = False) -> str:
    """Why a network makes no logits of an image of one channel; empty if it does."""
    content = {
        "in_channels": 1,
        "out_channels": classes,
        "network_input": {"size": list(size)},
        "network_def": copy.deepcopy(definition),
    }
    try:
        network = ConfigParser(content).get_parsed_content("network_def").train(training)
        with torch.set_grad_enabled(training):
            logits = network(torch.zeros(1, 1, *size))
    except Exception as error:  # of anybody's network
        return first_line(error.__cause__ or error)
    if not isinstance(logits, Tensor):
        return f"it makes a {type(logits).__name__}"
    return "" if logits.shape == (1, classes, *size) else f"it makes {by_axis(logits.shape)}"


def _configs(like: Path, kind: _Kind, labels: Sequence[str], ids: Config) -> dict[str, Config]:
    """train.json, inference.json and evaluate.json."""
    train, inference, evaluate = (config(like, x) for x in ("train", "inference", "evaluate"))
    for id_, value in ids.items():
        _set(train, id_, value)
    size = "@patch_size" if "patch_size" in train else "@image_size"
    as_trained: dict[str, Config] = {
        "network_def": {k: size if x == _SIZE else x for k, x in train["network_def"].items()}
    }
    plain: Config = {"num_classes": len(labels)}
    if "modality" in train:
        plain["modality"] = kind.modality
        if kind.modality != "CT":
            as_trained["intensity"] = train["intensity"] = _NORMALISED
    train |= plain | {"dataset_dir": "data"}
    inference["dataset_dir"] = "data"
    for file in (inference, evaluate):
        file |= {id_: f"$@settings.get({id_!r}, {value!r})" for id_, value in plain.items()}
        for id_, component in as_trained.items():
            first = {"_target_": component["_target_"], "_mode_": "callable"}
            file[id_]["default"] = first | {k: x for k, x in component.items() if k not in first}
    # There are two lungs.
    _set(inference, "postprocessing#transforms#1#num_components", 1)
    _set(evaluate["validate#postprocessing"], "transforms#1#num_components", 1)
    return {"train": train, "inference": inference, "evaluate": evaluate}


def _set(content: Any, id_: str, value: Any) -> None:
    *parents, last = id_.split("#")
    for key in parents:
        content = content[int(key) if isinstance(content, list) else key]
    content[int(last) if isinstance(content, list) else last] = value


def _metadata(like: Path, kind: _Kind, about: About, ids: Config) -> Config:
    metadata = {k: x for k, x in config(like, "metadata").items() if k not in _OF_WEIGHTS}
    named = {str(value): label for value, label in enumerate(about.labels)}
    metadata |= {
        "changelog": {metadata["version"]: "first release"},
        "modality": kind.modality,
        "image_classes": f"single channel of {kind.called}. {MARK}: how it is normalised",
        "label_classes": f"single channel, {about.values}",
        "pred_classes": f"{len(named)} channels of logits: {', '.join(about.labels)}",
        **to_describe(about),
    }
    formats = metadata["network_data_format"]
    image, pred = formats["inputs"]["image"], formats["outputs"]["pred"]
    image["modality"] = kind.modality
    if kind.modality != "CT":
        image |= {"format": "magnitude", "value_range": [-10, 10]}
    pred |= {"num_channels": len(named), "channel_def": named}
    shape: list[Any] = [f"{max(8, ids['network_input#multiple_of'])}*n"] * about.spatial_dims
    if _SIZE in ids["network_def"].values():
        train = config(like, "train")
        shape = train["patch_size" if "patch_size" in train else "image_size"]
    image["spatial_shape"] = pred["spatial_shape"] = shape
    return metadata


def _write(folder: Path, like: Path, texts: Mapping[str, str]) -> None:
    """Write the bundle: the folder appears complete, and verified, or not at all.

    Args:
        like: whose other files are copied.
        texts: by their files.
    """
    networks = [file.relative_to(like).as_posix() for file in like.glob("configs/networks/*.json")]
    copied = [file for file in (*FILES, *networks) if file not in texts]
    parents = [x for x in (folder.parent, *folder.parent.parents) if not os.path.lexists(x)]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            made = Path(temporary) / folder.name
            for name in (*copied, *texts, "models/.gitkeep"):
                (made / name).parent.mkdir(parents=True, exist_ok=True)
            for name in copied:
                shutil.copyfile(like / name, made / name)
            for name, text in texts.items():
                (made / name).write_text(text, encoding="utf-8", newline="\n")
            (made / "models/.gitkeep").touch()
            checks = len(READING) + len(RUNNING)
            for check, failures in tqdm(verify(made), "checks", total=checks, disable=None):
                if failures:
                    why = failures[0].strip().splitlines()[0].rstrip(".")
                    raise InputError(
                        f"{folder.name} is not made, as it would not pass {check}: "
                        f"{why.replace(str(made), str(folder))}."
                    )
            made.rename(folder)
    except BaseException as error:
        for parent in parents:  # the innermost first; one that somebody uses by now stays
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise InputError(f"{folder} cannot be written ({first_line(error)}).") from error
        raise
