import hashlib
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import InputError
from common.zoo import verify
from common.zoo.contract import READING, RUNNING
from common.zoo.verify import check_verified

from ..conftest import REPOSITORY
from .conftest import NAME, edit, write_weights

PACKAGE = REPOSITORY / "common"
CHECKS = {check.__name__: check for check in (*READING, *RUNNING)}


def failures(path: Path) -> dict[str, list[str]]:
    return {name: found for name, found in verify(path) if found}


def test_sound_bundles_pass_all_checks(packed: Path, bundle: Path):
    assert dict(verify(bundle)) == {name: [] for name in CHECKS}
    assert dict(verify(packed)) == {name: [] for name in ("checksum", "archive", *CHECKS)}
    with pytest.raises(InputError, match=r"There is no .*none; allowed is a bundle's folder"):
        list(verify(packed.parent / "none"))


class Malicious:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


def rename(bundle: Path, name: str) -> None:
    bundle.rename(bundle.with_name(name))


def set_id(config: str, id_: str, value: object) -> Callable[[Path], None]:
    """Give an id of a config another value; remove it if that is None."""

    def change(content: Any) -> None:
        *parents, last = id_.split("#")
        for key in parents:
            content = content[int(key) if isinstance(content, list) else key]
        if value is None:
            del content[last]
        else:
            content[int(last) if isinstance(content, list) else last] = value

    return lambda bundle: edit(bundle, config, change)


PREPROCESSING = "preprocessing#transforms"
IMAGE, PRED = (f"network_data_format#{x}" for x in ("inputs#image", "outputs#pred"))


@pytest.mark.parametrize(
    ("check", "change", "sentence"),
    [
        ("name_and_files", lambda b: rename(b, "lungs"), "the name is 'lungs'"),
        (
            "name_and_files",
            lambda b: rename(b, "lung_deepedit_segmentation"),
            "the name contains 'deepedit'",
        ),
        ("name_and_files", lambda b: (b / "LICENSE").unlink(), "LICENSE is missing"),
        ("name_and_files", lambda b: (b / "models/a.pt").touch(), "models/a.pt would be loaded"),
        ("metadata", set_id("metadata", "schema", "other.json"), "schema is 'other.json'"),
        ("metadata", set_id("metadata", "version", "1.10.0"), "version is '1.10.0'"),
        ("metadata", set_id("metadata", "version", "0.9.0"), "no entry for version 0.9.0"),
        ("metadata", set_id("metadata", "organ", ""), "organ is missing or empty"),
        ("metadata", set_id("metadata", "monai_version", None), "monai_version is None"),
        ("metadata", set_id("metadata", "task", "lungs"), "contain 'segmentation'"),
        ("metadata", set_id("metadata", "references", ["a book"]), "name no paper"),
        (
            "metadata",
            set_id("metadata", "required_packages_version", None),
            "required_packages_version is missing",
        ),
        ("metadata", lambda b: (b / "configs/metadata.json").write_text("{"), "cannot be read as"),
        ("metadata", lambda b: (b / "configs/metadata.json").write_text("[]"), "holds a list"),
        ("metadata", set_id("metadata", "version", "0.1.\u0660"), "version is '0.1."),
        (
            "metadata",
            lambda b: (b / "configs/metadata.json").write_text('{"version": 1, "version": 2}'),
            "has 'version' twice",
        ),
        (
            "train_config",
            lambda b: (b / "configs/train.json").write_text('{"a":' * 100_000),
            "is nested too deeply",
        ),
        ("data_format", set_id("metadata", f"{IMAGE}#dtype", None), "inputs#image has no dtype"),
        (
            "data_format",
            set_id("metadata", "network_data_format#inputs", {"scan": {}}),
            "the first of inputs is 'scan'",
        ),
        (
            "data_format",
            set_id("metadata", f"{PRED}#num_channels", 3),
            "outputs#pred#channel_def has 0, 1; allowed is 0 to 2",
        ),
        (
            "data_format",
            set_id("metadata", f"{PRED}#channel_def", {"0": "lung", "1": "other"}),
            "channel 0 of pred is 'lung'",
        ),
        ("train_config", set_id("train", "seed", None), "train.json has no seed"),
        (
            "train_config",
            set_id("train", "validate#handlers", "$list(@train#handlers)"),
            "validate#handlers is no literal list",
        ),
        (
            "train_config",
            set_id("train", "train#dataset#data", None),
            "no train#dataset#data, a list",
        ),
        (
            "train_config",
            set_id("train", "train#handlers#0", {"_target_": "ValidationHandler"}),
            "needs one ValidationHandler",
        ),
        (
            "train_config",
            lambda b: edit(b, "train", lambda x: x["validate"]["handlers"].pop()),
            "has to be @validate#best",
        ),
        ("inference_config", set_id("inference", "datalist", None), "has no datalist"),
        ("inference_config", set_id("inference", "inferer", "@other"), "inferer has no _target_"),
        (
            "inference_config",
            set_id("inference", "handlers#0#load_path", "model.pt"),
            "has to be a CheckpointLoader of @checkpoint",
        ),
        (
            "inference_config",
            lambda b: edit(b, "inference", lambda x: x["postprocessing"]["transforms"].reverse()),
            "needs InvertedLabelsd or Invertd, once and before SaveImaged",
        ),
        (
            "initialisation",
            set_id("train", "initialize", [{"_target_": "print"}]),
            "initialize of train.json has a component",
        ),
        ("plain_configs", set_id("inference", "device", "%train.json#device"), "has the macro"),
        (
            "plain_configs",
            set_id("networks/dynunet", "network_def#_target_", "common.networks.Unknown"),
            "networks/dynunet.json names common.networks.Unknown",
        ),
        (
            "overrides",
            lambda b: edit(b, "networks/unetr", lambda x: x.update({"patch": [64]})),
            "networks/unetr.json sets patch, which train.json has not",
        ),
        (
            "code",
            set_id("networks/dynunet", "network_def#_requires_", None),
            "network_def of networks/dynunet.json has _requires_ None",
        ),
        (
            "plain_configs",
            set_id("inference", "device", "$__import__('common').device"),
            "reaches common by an expression at device",
        ),
        (
            "plain_configs",
            set_id("inference", "network_def#default#_target_", "common.networks.Unknown"),
            "names common.networks.Unknown at network_def#default#_target_",
        ),
        (
            "plain_configs",
            set_id("inference", "network_def#default#_target_", "common.unknown.Network"),
            "names common.unknown.Network",
        ),
        ("agreement", set_id("train", "image_size", [256, 256]), "image_size differs between"),
        (
            "agreement",
            lambda b: edit(b, "inference", lambda x: x["preprocessing"]["transforms"].pop()),
            "validate#preprocessing of evaluate.json differs",
        ),
        ("agreement", set_id("evaluate", "image_size", [256, 256]), "train.json and evaluate.json"),
        (
            "settings",
            set_id("inference", "image_size", [512, 512]),
            "image_size of inference.json is not read from the checkpoint's settings",
        ),
        (
            "settings",
            lambda b: edit(b, "evaluate", lambda x: x.pop("label_map")),
            "label_map of evaluate.json is not read from the checkpoint's settings",
        ),
        (
            "settings",
            set_id("inference", "image_size", "$@settings.get('size', [512, 512])"),
            "image_size of inference.json reads the setting size; allowed is its own",
        ),
        (
            "settings",
            set_id("inference", "intensity#name", "network_def"),
            "intensity of inference.json reads the setting network_def",
        ),
        (
            "settings",
            set_id("evaluate", "settings", {}),
            "settings of evaluate.json is {}; allowed",
        ),
        (
            "settings",
            lambda b: (b / "models/settings.json").write_text('{"intensity": ["$print()"]}'),
            "models/settings.json: The checkpoint's settings have .*print.* as intensity#0",
        ),
        (
            "weights",
            lambda b: write_weights(b, settings={"network_def": {"_target_": "os.system"}}),
            "The checkpoint's settings have 'os.system' as network_def",
        ),
        (
            "network",
            lambda b: write_weights(b, settings={"network_def": {"_target_": "BasicUNet"}}),
            "is not of this BasicUNet",
        ),
        (
            "overrides",
            lambda b: edit(b, "evaluate", lambda x: x.update({"unknown#id": 1})),
            "evaluate.json sets unknown#id",
        ),
        (
            "overrides",
            lambda b: (b / "configs/mr.json").write_text('{"validate#handler": []}'),
            "mr.json sets validate#handler",
        ),
        ("code", set_id("train", "network_def#_requires_", None), "train.json has _requires_ None"),
        (
            "code",
            set_id("inference", "network_def#default#_requires_#required", "9.0.0"),
            "inference.json has _requires_ .*9.0.0.*; allowed is",
        ),
        ("code", lambda b: (b / "torch.py").touch(), "torch.py is code that a run might import"),
        ("weights", set_id("metadata", "weights", {"models/model.pt": "0"}), "the metadata says 0"),
        ("weights", set_id("metadata", "weights", {"a.pt": "0"}), "names a.pt; allowed is models"),
        (
            "weights",
            lambda b: (b / "models/other.pth").write_bytes(b"no checkpoint"),
            "other.pth cannot be read as a checkpoint",
        ),
        (
            "properties",
            set_id("train", "dataset_dir", None),
            "train.json has not what MONAI needs: Property 'dataset_dir'",
        ),
        (
            "properties",
            set_id("train", "initialize", ["$open(@bundle_root + '/early', 'w').close()"]),
            "train.json writes early before it is run",
        ),
        (
            "network",
            set_id("metadata", f"{PRED}#num_channels", 5),
            "the network of train.json is not as the metadata says: output channel number `2`",
        ),
        (
            "network",
            set_id("inference", "network_def#default#init_filters", 16),
            "model.pt is not of this LightMUNet",
        ),
    ],
)
def test_each_failure_has_its_sentence(
    bundle: Path, check: str, change: Callable[[Path], object], sentence: str
):
    change(bundle)
    (changed,) = bundle.parent.iterdir()
    found = CHECKS[check](changed)
    try:
        sentences = " | ".join(found)
    except (InputError, ValueError) as error:  # what verify reports as a check that fails
        sentences = f"cannot be checked: {error}"
    assert re.search(sentence, sentences)


@pytest.mark.parametrize(
    "file",
    [
        "common/evil.pyc",
        "common/errors.cpython-311-x86_64-linux-gnu.so",
        "common/__pycache__/errors.cpython-311.pyc",
        "common/evil.pth",
        "sitecustomize.PY",
        "torch.pyc",
        "torch.so",
        "torch.abi3.SO",
        "torch.pyd",
        "libtorch.so.1",
        "docs/a/b/c.py",
        "docs/lib.dylib",
        "docs/.hidden/evil.py",
        "lib/evil.egg",
        "__pycache__/torch.cpython-311.pyc",
    ],
)
def test_foreign_code(bundle: Path, file: str):
    # Not what an installation builds there either.
    shutil.copytree(
        PACKAGE, bundle / "common", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    (bundle / file).parent.mkdir(parents=True, exist_ok=True)
    (bundle / file).touch()
    (sentence,) = failures(bundle)["code"]
    place = file.partition("__pycache__")[0] + "__pycache__" if "__pycache__" in file else file
    assert sentence.startswith(f"{place} is ")


def test_foreign_code_behind_a_link(bundle: Path, tmp_path: Path):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/__init__.py").touch()
    (bundle / "data").symlink_to(tmp_path)
    assert failures(bundle) == {}
    (bundle / "torch").symlink_to(tmp_path / "evil")
    assert failures(bundle)["code"][0].startswith("torch/__init__.py is code")


@pytest.mark.parametrize(
    "name",
    [
        "MODEL.PT",
        "a.Pth",
        "a.CKPT",
        "sub/a.PICKLE",
        "a.ts",
        "a.pt2",
        "a.onnx",
        "a.safetensors",
        "a.npz",
        "a.npy",
        "a.h5",
        "a.joblib",
        "a.pth.tar",
        "../a.pt",
        "../docs/a.PKL",
    ],
)
def test_weights_of_all_forms_hold_tensors_alone(bundle: Path, tmp_path: Path, name: str):
    file = bundle / "models" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(Malicious(tmp_path / "run")))
    sentences = failures(bundle)["weights"]
    assert f"{file.name} cannot be read as a checkpoint" in sentences[0]
    assert not (tmp_path / "run").exists()


def test_weights_are_models_model_pt(bundle: Path):
    for name in ("Model.pt", "model.PT"):
        shutil.copy(bundle / "models/model.pt", bundle / "models" / name)
    assert failures(bundle)["weights"] == [
        f"models/{name} is models/model.pt on some systems; allowed is that name alone"
        for name in ("Model.pt", "model.PT")
    ]
    shutil.copy(bundle / "models/model.pt", bundle / "models/A.PT")
    assert "models/A.PT would be loaded" in failures(bundle)["name_and_files"][0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("args=(sys.stdout,)", "args=(print('run'),)", "args of handler_consoleHandler"),
        ("class=StreamHandler", "class=__import__('os').system", "class of handler_consoleHandler"),
        ("class=StreamHandler", "class=FileHandler", "class of handler_consoleHandler"),
        ("level=INFO\nf", "kwargs={'stream': print()}\nf", "kwargs of handler_consoleHandler"),
        ("level=INFO\nf", "KWARGS={'stream': print()}\nf", "kwargs of handler_consoleHandler"),
        ("datefmt", "class=os.system\ndatefmt", "class of formatter_fullFormatter"),
        ("datefmt", "defaults={'a': print()}\ndatefmt", "defaults of formatter_fullFormatter"),
        ("[loggers]", "[DEFAULT]\nkwargs={'a': print()}\n[loggers]", "kwargs of DEFAULT"),
        ("args=(sys.stdout,)", "args=(sys.stdout,\n  print())", "args of handler_consoleHandler"),
        ("args=(sys.stdout,)", "args=%(x)s\nx=(print(),)", "args of handler_consoleHandler"),
        ("[loggers]", "[loggers", "cannot be read as a logging.conf"),
        ("[loggers]", "# é\n[loggers]", "cannot be read as a logging.conf"),
    ],
)
def test_executable_logging_conf(bundle: Path, old: str, new: str, sentence: str):
    text = (bundle / "configs/logging.conf").read_text()
    assert old in text
    place = "configs/mr/LOGGING.conf"  # a config in that folder would have it applied
    (bundle / place).parent.mkdir()
    for file in ("configs/logging.conf", place):
        (bundle / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    found = failures(bundle)
    assert found.keys() == {"logging_conf"}
    for file in ("configs/logging.conf", place):
        assert any(x.startswith(file) and sentence in x for x in found["logging_conf"])


@pytest.mark.parametrize(
    "handler", ["class=logging.StreamHandler\nargs=( sys.stderr, )", "class=NullHandler\nargs=()"]
)
def test_other_logging_confs(bundle: Path, handler: str):
    file = bundle / "configs/logging.conf"
    text = (
        file.read_text().replace("class=StreamHandler", handler).replace("args=(sys.stdout,)\n", "")
    )
    file.write_text(text)
    assert failures(bundle) == {}


def test_missing_weights(bundle: Path):
    (bundle / "models/model.pt").unlink()
    assert failures(bundle) == {}
    set_id("metadata", "weights", {"models/model.pt": "0" * 64})(bundle)
    (sentence,) = failures(bundle)["weights"]
    assert sentence.startswith("models/model.pt is missing, and metadata.json says that the")


def test_malicious_weights_are_not_run(bundle: Path, tmp_path: Path):
    with (bundle / "models/model.pt").open("wb") as file:
        pickle.dump({"weight": Malicious(tmp_path / "run")}, file)
    (sentence,) = failures(bundle)["weights"]
    assert "model.pt cannot be read as a checkpoint" in sentence
    torch.save({"weight": Malicious(tmp_path / "run")}, bundle / "models/model.pt")
    (sentence,) = failures(bundle)["weights"]
    assert "model.pt cannot be read as a checkpoint" in sentence
    assert not (tmp_path / "run").exists()


def test_expressions_do_not_run_where_reading_finds_failures(bundle: Path, tmp_path: Path):
    set_id(
        "inference", "network_def#default#spatial_dims", f"$open({str(tmp_path / 'run')!r}, 'w')"
    )(bundle)
    found = failures(bundle)
    assert found == {"agreement": ["network_def differs between train.json and inference.json"]}
    assert not (tmp_path / "run").exists()


def test_checks_that_break_off_are_failures(bundle: Path):
    edit(bundle, "evaluate", lambda x: x.update({"validate#preprocessing": []}))
    (sentence,) = failures(bundle)["agreement"]
    assert sentence.startswith("it cannot be checked (TypeError")
    with pytest.raises(InputError, match="is no sound bundle: agreement: it cannot be checked"):
        check_verified(bundle)


def repacked(archive: Path, target: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """An archive as somebody else may have made it from another."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w") as new:
        for name in source.namelist():
            content = change(name.partition("/")[2], source.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_archives_with_another_common(packed: Path, tmp_path: Path):
    def other_file(name: str, content: bytes) -> bytes | None:
        if name == "common/errors.py":
            return content + b"\nprint()\n"
        return None if name == "common/files.py" else content

    found = failures(repacked(packed, tmp_path / "a.zip", other_file))
    assert list(found) == ["code"]
    changed, missing = found["code"]
    assert changed.startswith("common/errors.py is not that of the common")
    assert missing == "common/files.py is missing"


def test_archives_are_what_their_checksum_says(packed: Path, tmp_path: Path):
    archive, checksum = tmp_path / packed.name, tmp_path / f"{packed.name}.sha256"
    shutil.copy(packed, archive)
    checksum.write_text(Path(f"{packed}.sha256").read_text())
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    (sentence,) = failures(archive)["checksum"]
    assert sentence.startswith(f"{archive.name} has SHA-256 {found}, and {checksum.name} says ")
    checksum.unlink()
    assert dict(verify(archive))["checksum"] is None
    (sentence,) = failures(archive)["archive"]
    assert "cannot be unpacked (Bad CRC-32" in sentence
    checksum.write_text("")
    assert "says " in failures(archive)["checksum"][0]
    shutil.copy(packed, archive)
    checksum.write_text(Path(f"{packed}.sha256").read_text().upper())
    assert dict(verify(archive))["checksum"] == []
    checksum.unlink()
    checksum.mkdir()
    assert "cannot be read" in failures(archive)["checksum"][0]


def test_what_was_hashed_is_what_is_verified(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive = tmp_path / packed.name
    shutil.copy(packed, archive)
    shutil.copy(f"{packed}.sha256", tmp_path)
    results = verify(archive)
    assert next(results) == ("checksum", [])
    archive.unlink()
    zipfile.ZipFile(archive, "w").close()
    assert next(results) == ("archive", [])
    assert not any(found for _, found in results)


def test_weights_of_an_upper_case_checksum(bundle: Path):
    digest = hashlib.sha256((bundle / "models/model.pt").read_bytes()).hexdigest().upper()
    set_id("metadata", "weights", {"models/model.pt": digest})(bundle)
    assert failures(bundle) == {}


def test_archives_of_others_are_checked_before_they_are_unpacked(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"{NAME}/../../evil", "")
    (sentence,) = failures(tmp_path / "a.zip")["archive"]
    assert "which may lead outside the folder" in sentence
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("anything/readme.txt", "")
    found = failures(tmp_path / "b.zip")
    assert "the name is 'anything'" in found["name_and_files"][0]
    assert found["metadata"][0].startswith("it cannot be checked (")
    assert "properties" not in found
