"""What a bundle must satisfy, so that it works in all programs that take bundles.

Each check takes a bundle's folder and yields a sentence for whatever fails. Those of `READING` read
files and run nothing of the bundle's. Those of `RUNNING` build what the configs name, and so run
the expressions in them: only for bundles that one would run.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from .. import __version__
from ..checkpoints import check_checkpoint, check_setting, load_settings, load_state_dict
from ..errors import InputError, first_line
from ..files import read_json
from .archives import COMPILED, sha256
from .reference import reference_failures

Config = dict[str, Any]
Check = Callable[[Path], Iterator[str]]

FILES = [
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/inference.json",
    "configs/evaluate.json",
    "configs/multi_gpu_train.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
]
DELTAS = ["evaluate", "multi_gpu_train"]
WEIGHTS = "models/model.pt"
# What programs that store weights call their files.
_WEIGHT_SUFFIXES = {
    *("pt", "pth", "ckpt", "bin", "th", "t7", "tar", "safetensors"),
    *("pkl", "pickle", "p", "pk", "dill", "joblib", "npy", "npz", "h5", "hdf5", "keras"),
    *("ts", "jit", "torchscript", "ptl", "pte", "pt2", "mar", "nemo"),
    *("onnx", "ort", "pb", "tflite", "engine", "plan", "trt", "gguf", "msgpack", "mlmodel"),
}
_COLUMNS = 100  # of the configs' lines
_SOURCE = re.compile(r"\.pyw?\Z", re.IGNORECASE)
# What a logging.conf may set, and to what: some values are evaluated as Python.
_LOGGING: dict[str, set[str]] = {
    "class": {"StreamHandler", "logging.StreamHandler", "NullHandler", "logging.NullHandler"},
    "args": {"()", "(sys.stdout,)", "(sys.stderr,)"},
}
_LOGGING_PLAIN = {
    *("keys", "level", "handlers", "propagate", "qualname", "formatter"),
    *("format", "datefmt", "style"),
}
# What brings a mask to the grid of the image's file.
_INVERSES = ("common.transforms.InvertedLabelsd", "Invertd")
_AS_TRAINED = "common.workflows.as_trained"
_FROM_SETTINGS = re.compile(r"\$@settings\.get\('(\w+)', (.+)\)")
_READ = {"_target_": "common.workflows.read_settings", "checkpoint": "@members"}
SETTINGS = "models/settings.json"  # of the weights, as a config
_PACKAGE = Path(__file__).parents[1]


def config(bundle: Path, name: str) -> Config:
    """A config of a bundle as it stands in the file.

    Raises:
        InputError: as `read_json`.
    """
    return read_json(bundle / f"configs/{name}.json")


def as_text(content: Config) -> str:
    """A config as all are written: short lists of numbers and words on one line."""
    return f"{_formatted(content, '')}\n"


def _formatted(content: Any, margin: str) -> str:
    """JSON as the bundles have it: lists of numbers and words in as few lines as they fit in."""
    inner = f"{margin}    "
    if isinstance(content, dict) and content:
        parts = [f"{json.dumps(k)}: {_formatted(x, inner)}" for k, x in content.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(parts) + f"\n{margin}}}"
    if isinstance(content, list) and content:
        parts = [_formatted(x, inner) for x in content]
        if all(re.fullmatch(r'[-+.\w]+|"[-*\w]*"', part) for part in parts):
            lines = textwrap.wrap(", ".join(parts), _COLUMNS - len(inner), break_on_hyphens=False)
            if len(lines) == 1:
                return f"[{lines[0]}]"
            return f"[\n{inner}" + f"\n{inner}".join(lines) + f"\n{margin}]"
        return f"[\n{inner}" + f",\n{inner}".join(parts) + f"\n{margin}]"
    return json.dumps(content, ensure_ascii=False)


def ids(content: Any, prefix: str = "") -> dict[str, Any]:
    """Every id of a config and its value, as MONAI writes ids: a#b#0."""
    found: dict[str, Any] = {}
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    for key, value in items:
        found[f"{prefix}{key}"] = value
        found |= ids(value, f"{prefix}{key}#")
    return found


def without_checkpoint(content: Any) -> Any:
    """A config, or a part, with the values that it has where no checkpoint says otherwise."""
    if isinstance(content, dict) and content.get("_target_") == _AS_TRAINED:
        default = {key: x for key, x in content["default"].items() if key != "_mode_"}
        return without_checkpoint(default)
    if isinstance(content, dict):
        return {key: without_checkpoint(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_checkpoint(value) for value in content]
    if isinstance(content, str) and (found := _FROM_SETTINGS.fullmatch(content)):
        return ast.literal_eval(found[2])
    return content.replace("#default#", "#") if isinstance(content, str) else content


def compared(bundle: Path) -> list[str]:
    """The configs of networks to compare with, by their names for `config`."""
    return [f"networks/{file.stem}" for file in sorted(bundle.glob("configs/networks/*.json"))]


def spatial_dims(bundle: Path) -> int:
    formats = config(bundle, "metadata")["network_data_format"]
    return len(formats["inputs"]["image"]["spatial_shape"])


def nested(bundle: Path) -> bool:
    """Whether the output is a sigmoid per class, each within the one before; no background."""
    steps = ids(config(bundle, "inference").get("postprocessing", {}))
    return "common.transforms.NestedLabelsd" in steps.values()


def staged(bundle: Path) -> bool:
    """Whether it trains a cascade, stage by stage: a stage's network is half of what it is."""
    return "stage" in config(bundle, "train")


def shipped() -> dict[str, Path]:
    """What of this package a packed bundle carries: paths in it, and files."""
    others = [
        file
        for kind in ("ops/csrc/*", "data/lists/*.txt", "evaluation/*.jinja", "networks/*.json")
        for file in _PACKAGE.glob(kind)
    ]
    sources = (*_PACKAGE.rglob("*.py"), *others)
    return {file.relative_to(_PACKAGE).as_posix(): file for file in sources}


def _targets(bundle: Path, id_: str) -> list[str]:
    """What the steps of a chain in the inference config are."""
    steps = ids(config(bundle, "inference")).get(id_, [])
    return [step.get("_target_", "") if isinstance(step, dict) else "" for step in steps]


def name_problems(name: str) -> Iterator[str]:
    """What is wrong with a bundle's name, that of its folder."""
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+_segmentation", name):
        yield f"the name is {name!r}; allowed are words such as liver_ct_segmentation"
    if found := re.search("detection|classification|deepedit", name):
        yield f"the name contains {found[0]!r}, from which MONAI Label takes another task"


def name_and_files(bundle: Path) -> Iterator[str]:
    yield from name_problems(bundle.resolve().name)
    for path in FILES:
        if not (bundle / path).is_file():
            yield f"{path} is missing"
    for file in (bundle / "models").glob("*"):
        if file.suffix.casefold() == ".pt" and len(file.name) < len("model.pt"):
            yield f"models/{file.name} would be loaded by MONAI Label: its name is the shortest"


def metadata(bundle: Path) -> Iterator[str]:
    meta = config(bundle, "metadata")
    version = str(meta.get("version"))
    if not str(meta.get("schema")).endswith("meta_schema_20240725.json"):
        yield f"schema is {meta.get('schema')!r}; allowed is meta_schema_20240725.json"
    if not re.fullmatch(r"[0-9]\.[0-9]\.[0-9]", version):  # MONAI's tools compare them as text
        yield f"version is {version!r}; allowed are three digits with points, such as 0.1.0"
    if version not in meta.get("changelog", {}):
        yield f"changelog has no entry for version {version}"
    for key in ("name", "authors", "copyright", "description", "modality", "organ"):
        if not meta.get(key):
            yield f"{key} is missing or empty"
    for key in ("monai_version", "pytorch_version", "numpy_version"):
        if not re.match(r"\d+\.\d+", str(meta.get(key))):
            yield f"{key} is {meta.get(key)!r}; allowed is a version"
    if not isinstance(meta.get("required_packages_version"), dict):
        yield "required_packages_version is missing; needed are the packages and their versions"
    if "segmentation" not in str(meta.get("task")):
        yield f"task is {meta.get('task')!r}; it has to contain 'segmentation'"
    if not any("arXiv" in str(text) or "doi" in str(text) for text in meta.get("references", ())):
        yield "references name no paper by its arXiv number or its doi"


def data_format(bundle: Path) -> Iterator[str]:
    formats = config(bundle, "metadata").get("network_data_format", {})
    for part, name in (("inputs", "image"), ("outputs", "pred")):
        tensors = formats.get(part) or {None: {}}
        key, tensor = next(iter(tensors.items()))
        if key != name:
            yield f"the first of {part} is {key!r}; allowed is {name!r}"
        for field in ("type", "format", "num_channels", "spatial_shape", "dtype", "value_range"):
            if field not in tensor:
                yield f"{part}#{key} has no {field}"
        # The output's names are those of the label map; one channel is a sigmoid, of class 1.
        channels = tensor.get("num_channels", 0)
        names = channels + (name == "pred" and (channels == 1 or nested(bundle)))
        if list(named := tensor.get("channel_def", {})) != [str(i) for i in range(names)]:
            found = ", ".join(named) or "none"
            yield f"{part}#{key}#channel_def has {found}; allowed is 0 to {names - 1}"
        if name == "pred" and named.get("0") != "background":
            yield f"channel 0 of {key} is {named.get('0')!r}; allowed is 'background'"


def train_config(bundle: Path) -> Iterator[str]:
    train = ids(config(bundle, "train"))
    for key in ("network", "output_dir", "val_interval", "seed", "num_classes", "in_channels"):
        if key not in train:
            yield f"train.json has no {key}"
    handlers: dict[str, list[Config]] = {}
    for part in ("train", "validate"):
        for key in (f"{part}#handlers", f"{part}#preprocessing#transforms"):
            if not isinstance(train.get(key), list):
                yield f"{key} is no literal list, into which MONAI Label and MLflow could insert"
        if f"{part}#dataset#data" not in train:
            yield f"train.json has no {part}#dataset#data, a list that users replace"
        found = train.get(f"{part}#handlers")
        found = found if isinstance(found, list) else []
        handlers[part] = [x for x in found if isinstance(x, dict)]
    validations = [x for x in handlers["train"] if x.get("_target_") == "ValidationHandler"]
    if [(x.get("validator"), x.get("interval")) for x in validations] != [
        ("@validate#evaluator", "@val_interval")
    ]:
        yield (
            "train#handlers needs one ValidationHandler, with @validate#evaluator as validator and "
            "@val_interval as interval"
        )
    if (found := train.get("validate#handlers")) and found[-1] != "@validate#best":
        yield "the last of validate#handlers has to be @validate#best, which keeps model.pt"
    if train.get("validate#best#_target_") != "common.workflows.SaveBest":
        yield "validate#best has to be a common.workflows.SaveBest, which writes model.pt"


def inference_config(bundle: Path) -> Iterator[str]:
    inference = ids(config(bundle, "inference"))
    chains = ("preprocessing", "postprocessing")
    for key in ("network", "output_dir", "datalist", "dataloader", *chains):
        if key not in inference:
            yield f"inference.json has no {key}"
    if "inferer#_target_" not in inference:
        yield "inferer has no _target_"
    path = inference.get("handlers#0#load_path")
    if inference.get("handlers#0#_target_") != "CheckpointLoader" or path not in (
        "@checkpoint",
        "@typed#checkpoint",
        "$@members[0]",
    ):
        yield "the first of handlers has to be a CheckpointLoader of @checkpoint, for Slicer"
    steps = _targets(bundle, "postprocessing#transforms")
    inverse = [step for step in steps if step in _INVERSES]
    if len(inverse) != 1 or "SaveImaged" not in steps[steps.index(inverse[0]) :]:
        yield (
            "postprocessing needs InvertedLabelsd or Invertd, once and before SaveImaged: masks "
            "belong on the image's grid"
        )


def initialisation(bundle: Path) -> Iterator[str]:
    for name in ("train", "inference", *DELTAS):
        for step in config(bundle, name).get("initialize", []):
            if not isinstance(step, str):
                yield f"initialize of {name}.json has a component: checks belong to run"


def plain_configs(bundle: Path) -> Iterator[str]:
    """Configs say what they do; what they name of this package is there."""
    for name in ("train", "inference", *DELTAS, *compared(bundle)):
        for id_, value in ids(config(bundle, name)).items():
            if not isinstance(value, str):
                continue
            if value.startswith("%"):
                yield f"{name}.json has the macro {value} at {id_}"
            if value.startswith("$") and re.search(r"\bcommon\b", value):
                yield f"{name}.json reaches common by an expression at {id_}; allowed is _target_"
            if id_.endswith("_target_") and value.startswith("common."):
                module, _, attribute = value.rpartition(".")
                try:
                    named = getattr(importlib.import_module(module), attribute, None)
                except ImportError:
                    named = None
                if not callable(named):
                    yield f"{name}.json names {value} at {id_}, which common {__version__} has not"


def agreement(bundle: Path) -> Iterator[str]:
    """Training, evaluation and inference have one network and one chain of preprocessing."""
    train, inference, evaluate = (
        without_checkpoint(config(bundle, name)) for name in ("train", "inference", "evaluate")
    )
    size = "@image_size" if "image_size" in train else "@patch_size"

    def as_inferred(value: Any) -> Any:
        """What training rounds is a setting from then on."""
        return value.replace("@network_input#size", size) if isinstance(value, str) else value

    for key in (
        "network_def",
        "modality",
        "axcodes",
        "axes",
        "in_channels",
        "num_classes",
        "spacing",
        "in_plane_factor",
        "slice_spacing",
        "patch_size",
        "image_size",
        "intensity",
        "device",
        "amp",
    ):
        trained = train.get(key)
        if key == "network_def" and isinstance(trained, dict):
            trained = {name: as_inferred(value) for name, value in trained.items()}
        if trained != inference.get(key):
            yield f"{key} differs between train.json and inference.json"
        if evaluate.get(key, trained) != trained:
            yield f"{key} differs between train.json and evaluate.json"

    def steps(preprocessing: Config) -> list[Config]:
        """What a chain does to the image: the label's share and a user's choice left out."""
        done = []
        for step in preprocessing["transforms"]:
            found = re.fullmatch(r"@train#preprocessing#transforms#(\d+)", str(step))
            step = train["train"]["preprocessing"]["transforms"][int(found[1])] if found else step
            if isinstance(step, dict):
                # What one stage of a cascade does alone is the inferer's part in inference.
                if step["keys"] == "label" or (staged(bundle) and "_disabled_" in step):
                    continue
                apart = ("label_key", "num_classes", "label_map", "ignore_label", "series_uid")
                step = {k: v for k, v in step.items() if k not in apart}
                step["keys"] = "image"
                if isinstance(step.get("mode"), list):
                    step["mode"] = step["mode"][0]
                if "spatial_size" in step:
                    step["spatial_size"] = as_inferred(str(step["spatial_size"]))
            done.append(step)
        return done

    wanted = steps(inference["preprocessing"])
    if steps(train["validate"]["preprocessing"]) != wanted:
        yield "validate#preprocessing of train.json differs from preprocessing of inference.json"
    if steps(evaluate["validate#preprocessing"]) != wanted:
        yield "validate#preprocessing of evaluate.json differs from preprocessing of inference.json"


def settings(bundle: Path) -> Iterator[str]:
    """What a training says of itself is read from its checkpoint, and what is read is data."""
    names = config(bundle, "train").get("settings", {}).get("names", [])
    for file in ("inference", "evaluate"):
        found = config(bundle, file)
        if found.get("settings") != _READ:
            yield f"settings of {file}.json is {found.get('settings')}; allowed is {_READ}"
        values = ids(found)
        for id_, value in values.items():
            if (name := _setting_in(value)) not in (None, id_):
                yield f"{id_} of {file}.json reads the setting {name}; allowed is its own"
        for name in names:
            # Inference has nothing of labels; their names are for people.
            needed = name != "label_names" and (name in values or file == "evaluate")
            if needed and _setting_in(values.get(name)) is None:
                yield f"{name} of {file}.json is not read from the checkpoint's settings"
    if (bundle / SETTINGS).is_file():
        try:
            _check_settings(read_json(bundle / SETTINGS))
        except InputError as error:
            yield f"{SETTINGS}: {error}"


def _check_settings(found: Config) -> None:
    for id_, value in found.items():
        check_setting(id_, value)


def _setting_in(value: Any) -> str | None:
    """The name of the setting that a config's value is read from, if it is."""
    if isinstance(value, dict) and value.get("_target_") == _AS_TRAINED:
        return str(value.get("name"))
    found = _FROM_SETTINGS.fullmatch(value) if isinstance(value, str) else None
    return found[1] if found else None


def overrides(bundle: Path) -> Iterator[str]:
    """Files that change others change what exists in training, by which inference goes."""
    train = ids(config(bundle, "train")).keys()
    for file in sorted((bundle / "configs").glob("*.json")):
        if file.stem in ("metadata", "train", "inference"):
            continue
        # finalize is MONAI's own, empty if absent.
        known = train | {"finalize"} if file.stem in DELTAS else train
        if file.stem == "evaluate":  # of a cascade, which evaluates as it infers
            known |= config(bundle, "inference").keys()
        elif file.stem.startswith("evaluate_"):  # of evaluation alone
            known |= ids(config(bundle, "evaluate")).keys()
        for key in config(bundle, file.stem):
            if key not in known:
                yield f"{file.name} sets {key}, which the configs that it changes have not"
    for name in compared(bundle):
        for key in config(bundle, name):
            if key not in train:
                yield f"{name}.json sets {key}, which train.json has not"


def code(bundle: Path) -> Iterator[str]:
    """The configs ask for this version of common, and a copy in the bundle is this one."""
    for name in ("train", "inference", *compared(bundle)):
        network = without_checkpoint(config(bundle, name)).get("network_def", {})
        if not str(network.get("_target_")).startswith("common."):
            continue
        wanted = {"_target_": "common.zoo.check_version", "required": __version__}
        if network.get("_requires_") != wanted:
            yield (
                f"network_def of {name}.json has _requires_ {network.get('_requires_')}; allowed "
                f"is {wanted}, the version that checks it"
            )
    copy = bundle / "common"
    running = copy.is_dir() and copy.samefile(_PACKAGE)
    ours = {f"common/{path}": file for path, file in shipped().items()}
    theirs = _contents(bundle)
    for path, file in theirs.items():
        if path.startswith("common/") and running:
            continue
        if file.name == "__pycache__":
            yield f"{path} is for compiled code, which runs in place of its source; remove it"
        elif not path.startswith("common/"):
            if _SOURCE.search(path) or COMPILED.search(path):
                yield f"{path} is code that a run might import; allowed is common's"
        elif path not in ours or file.read_bytes() != ours[path].read_bytes():
            yield (
                f"{path} is not that of the common {__version__} which checks it; to check a "
                "bundle with its own, run `python -m common zoo verify .` in its folder"
            )
    if copy.is_dir() and not running:
        for path in sorted(ours.keys() - theirs.keys()):
            yield f"{path} is missing"


def _contents(bundle: Path) -> dict[str, Path]:
    """What Python may find in a bundle's folder: paths in it, and files.

    Of a folder __pycache__ that is the folder alone; of a link to a folder, what is in that.
    """
    found = {}
    for file in sorted(bundle.rglob("*")):
        path = file.relative_to(bundle)
        if "__pycache__" in path.parts:
            path = Path(*path.parts[: path.parts.index("__pycache__") + 1])
        elif file.is_dir():
            linked = file.iterdir() if file.is_symlink() else ()
            found.update({(path / inner.name).as_posix(): inner for inner in linked})
            continue
        found[path.as_posix()] = bundle / path
    return found


def logging_conf(bundle: Path) -> Iterator[str]:
    """Logs go to the terminal: MONAI gives the file to logging.config, which evaluates parts."""
    for file in sorted(bundle.rglob("*")):
        if file.name.casefold() != "logging.conf" or not file.is_file():
            continue
        path, parser = file.relative_to(bundle).as_posix(), configparser.RawConfigParser()
        try:
            parser.read_string(file.read_text(encoding="ascii"))
        except (ValueError, configparser.Error) as error:
            yield f"{path} cannot be read as a logging.conf ({first_line(error)})"
            continue
        for section, values in parser.items():
            for key, value in values.items():
                allowed = _LOGGING.get(key, set())
                if key not in _LOGGING_PLAIN and "".join(value.split()) not in allowed:
                    yield (
                        f"{path} sets {key} of {section} to {reprlib.repr(value)}, which might "
                        f"run as code; allowed are {', '.join(sorted(allowed)) or 'other keys'}"
                    )


def weights(bundle: Path) -> Iterator[str]:
    """Weights hold tensors and no code, and are those that the metadata tells of."""
    for name, digest in config(bundle, "metadata").get("weights", {}).items():
        if name != WEIGHTS:
            yield f"weights of metadata.json names {name}; allowed is {WEIGHTS}"
        elif not (bundle / name).is_file():
            yield (
                f"{name} is missing, and metadata.json says that the bundle has weights: put the "
                f"file with SHA-256 {digest} there, or remove the entry from weights"
            )
        elif (found := sha256(bundle / name)) != str(digest).lower():
            yield f"{name} has SHA-256 {found}; the metadata says {digest}"
    yield from unsafe_weights(bundle)


def unsafe_weights(bundle: Path) -> Iterator[str]:
    """Files anywhere in a bundle that are weights by their names, and hold more than data."""
    for file in sorted(bundle.rglob("*")):
        _, point, suffix = file.name.casefold().rpartition(".")
        if not point or suffix not in _WEIGHT_SUFFIXES or not file.is_file():
            continue
        path = file.relative_to(bundle).as_posix()
        try:
            load_state_dict(file)
            _check_settings(load_settings(file))
        except InputError as error:
            yield str(error)
        else:
            if path != WEIGHTS and path.casefold() == WEIGHTS:
                yield f"{path} is {WEIGHTS} on some systems; allowed is that name alone"


def properties(bundle: Path) -> Iterator[str]:
    """MONAI finds in the workflows what it needs, and nothing is written before a run."""
    for name, kind in (("train", "train"), ("inference", "infer")):
        with TemporaryDirectory() as root:
            image, label = f"{root}/a.nii.gz", f"{root}/b.nii.gz"
            override: Config = {"bundle_root": root, "device": "cpu"}
            if name == "train":
                for part in ("train", "validate"):
                    override[f"{part}#dataset#data"] = [{"image": image, "label": label}]
                    if f"{part}#dataset#cache_num" in ids(config(bundle, name)):
                        override[f"{part}#dataset#cache_num"] = 0
            else:
                override |= {"datalist": [image], "handlers": []}
            workflow = ConfigWorkflow(
                str(bundle / f"configs/{name}.json"),
                workflow_type=kind,
                logging_file=False,
                **override,
            )
            workflow.initialize()
            for file in Path(root).iterdir():
                yield f"{name}.json writes {file.name} before it is run"
            try:
                missing = workflow.check_properties() or []
            except KeyError as error:  # one that is required
                missing = [str(error.args[0])]
            for lacking in missing:
                yield f"{name}.json has not what MONAI needs: {lacking}"


def network(bundle: Path) -> Iterator[str]:
    """The network takes and gives what the metadata says; weights fit it."""
    whole = {"stage": "$None"} if staged(bundle) else {}  # MONAI leaves out None
    told = load_settings(bundle / WEIGHTS) if (bundle / WEIGHTS).is_file() else {}
    known = ids(config(bundle, "train"))
    given = {
        "train": {id_: value for id_, value in told.items() if id_ in known},
        "inference": {"bundle_root": str(bundle)},
    }
    for name in ("train", "inference"):
        try:
            verify_net_in_out(
                "network_def",
                meta_file=str(bundle / "configs/metadata.json"),
                config_file=str(bundle / f"configs/{name}.json"),
                device="cpu",
                n=2,
                **given[name] | whole,
            )
        except (ValueError, RuntimeError) as error:
            yield f"the network of {name}.json is not as the metadata says: {error}"
    if (bundle / WEIGHTS).is_file():
        parser = ConfigParser()
        parser.read_config(str(bundle / "configs/inference.json"))
        parser["bundle_root"] = str(bundle)
        try:
            check_checkpoint(bundle / WEIGHTS, parser.get_parsed_content("network_def"))
        except InputError as error:
            yield str(error)


def reference(bundle: Path) -> Iterator[str]:
    """The weights make of a phantom what they made of it where they were published."""
    yield from reference_failures(bundle, config(bundle, "metadata"))


READING: list[Check] = [
    name_and_files,
    metadata,
    data_format,
    train_config,
    inference_config,
    initialisation,
    plain_configs,
    agreement,
    settings,
    overrides,
    code,
    logging_conf,
    weights,
]
RUNNING: list[Check] = [properties, network, reference]
