"""A new bundle: what is in it, that it is sound, and what cannot be made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.cli import main
from common.errors import InputError
from common.zoo import new, new_bundle, verify
from common.zoo.contract import READING, as_text, compared, config

from ..conftest import REPOSITORY, shared
from ..test_readmes import SECTIONS
from .conftest import edit

NAME = "liver_ct_segresnet_segmentation"
BUNDLES = REPOSITORY / "bundles"
VOLUMES, PICTURES = (BUNDLES / name for name in (new._VOLUMES, new._PICTURES))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With MONAI's SegResNet; not to be changed."""
    return new_bundle(NAME, "SegResNet", "liver,tumour", tmp_path_factory.mktemp("new")).folder


@pytest.fixture
def read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large networks are not built, which the contract's tests of bundles do."""

    def reading(bundle: Path) -> Iterator[tuple[str, list[str]]]:
        for check in READING:
            yield check.__name__, list(check(bundle))

    monkeypatch.setattr(new, "verify", reading)


def test_it_trains(tmp_path: Path, read_alone):
    """A step by its own loss and optimizer on pictures, after which the loss is less."""
    network = {"_target_": "UNet", "channels": [4, 8, 8], "strides": [2, 2]}
    bundle = new_bundle("lung_cxr_x_segmentation", network, "left,right", tmp_path).folder
    torch.manual_seed(0)
    parser = ConfigParser(config(bundle, "train"))
    parser["device"] = "cpu"
    built = parser.get_parsed_content("network").train()
    optimizer = parser.get_parsed_content("optimizer")
    loss = parser.get_parsed_content("train#trainer#loss_function")
    image = torch.rand(2, 1, 16, 16)
    label = (image * 3).floor()
    before = loss(built(image), label)
    before.backward()
    assert [name for name, x in built.named_parameters() if x.grad is None] == []
    optimizer.step()
    assert loss(built(image), label) < before


def test_it_differs_from_its_pieces_by_the_network_and_the_classes_alone(made: Path):
    ours, theirs = (config(bundle, "train") for bundle in (made, VOLUMES))
    differ = {id_ for id_ in ours.keys() | theirs.keys() if ours.get(id_) != theirs.get(id_)}
    assert differ == {"dataset_dir", "network_def", "network_input"}  # three classes, too
    assert ours["network_def"] == {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "in_channels": "@in_channels",
        "out_channels": "@out_channels",
    }
    assert ours["network_input"]["multiple_of"] == 8
    for name in ("LICENSE", "configs/multi_gpu_train.json", "configs/logging.conf"):
        assert (made / name).read_bytes() == (VOLUMES / name).read_bytes()
    assert compared(made) == compared(VOLUMES)
    assert [file.name for file in (made / "models").iterdir()] == [".gitkeep"]


def test_its_metadata_are_of_its_name_and_classes(made: Path):
    metadata = config(made, "metadata")
    assert metadata["name"] == "Liver segmentation in CT with SegResNet"
    assert (metadata["modality"], metadata["organ"]) == ("CT", "Liver")
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["channel_def"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert (pred["num_channels"], pred["spatial_shape"]) == (3, ["8*n"] * 3)
    validators = pytest.importorskip("jsonschema.validators")
    schema = json.loads(shared("data/monai/meta_schema_20240725.json").read_text())
    validator = validators.validator_for(schema)
    assert not list(validator(schema).iter_errors(metadata))


def test_lines_to_fill_in_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], read_alone
):
    words = ["new_bundle", NAME, "--network", "segresnet", "--classes", "liver,tumour"]
    monkeypatch.setattr("sys.argv", ["common", *words, "--output", str(tmp_path)])
    main()
    first, *others = capsys.readouterr().out.splitlines()
    assert first == f"{NAME} is in {tmp_path}/{NAME}"
    places = [line.removeprefix("to fill in: ") for line in others]
    marked = [
        f"{file.relative_to(tmp_path / NAME).as_posix()}:{number}"
        for file in sorted((tmp_path / NAME).rglob("*.*"))
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if "FILL IN" in line
    ]
    assert places == marked
    files = {place.partition(":")[0] for place in places}
    assert files == {"configs/metadata.json", "docs/README.md", "docs/data_license.txt"}
    said = (tmp_path / NAME / "docs/README.md").read_text()
    recipe = "| `learning_rate` | `0.0001` | `configs/networks/segresnet.json` |"
    assert recipe in said.splitlines()
    assert [line for line in said.splitlines() if line in SECTIONS] == SECTIONS


@pytest.mark.parametrize("bundle", [VOLUMES, PICTURES], ids=lambda path: path.name)
def test_configs_are_written_as_they_are(bundle: Path):
    for name in ("train", "inference", "evaluate", "metadata"):
        text = (bundle / f"configs/{name}.json").read_text()
        assert as_text(json.loads(text)) == text, name


NETWORKS = [
    (name, file.rpartition("/")[2])
    for name, bundle in (
        ("heart_mr_x_segmentation", VOLUMES),
        ("heart_us_x_segmentation", PICTURES),
    )
    for file in compared(bundle)
]


@pytest.mark.parametrize(("name", "network"), NETWORKS)
def test_every_network_to_compare_with(tmp_path: Path, read_alone, name: str, network: str):
    """With its recipe, as in its file; none of them fails what is read of a bundle."""
    bundle = new_bundle(name, network, ["heart"], tmp_path).folder
    ids, train = config(bundle, f"networks/{network}"), config(bundle, "train")
    assert train["optimizer"] == ids["optimizer"]
    assert train["network_def"]["_target_"] == ids["network_def"]["_target_"]
    assert (train["num_classes"], train["learning_rate"]) == (2, ids["learning_rate"])
    loss = train["train"]["trainer"]["loss_function"]
    assert loss == ids.get("train#trainer#loss_function", "@loss")
    (row,) = (
        line
        for line in (bundle / "docs/README.md").read_text().splitlines()
        if line.startswith("| `loss` |")
    )
    if loss == "@loss":
        like = VOLUMES if name == "heart_mr_x_segmentation" else PICTURES
        assert row == f"| `loss` | `DiceCELoss` | `{like.name}` |"
    else:
        target = loss["_target_"].rpartition(".")[2]
        said = f"| `{target}` of `DiceCELoss` | `configs/networks/{network}.json` |"
        assert row == f"| `loss` {said}"
    inference = config(bundle, "inference")
    said = json.dumps([inference["network_def"], config(bundle, "evaluate")["network_def"]])
    assert "@network_input" not in said
    assert inference["num_classes"] == "$@settings.get('num_classes', 2)"


def test_other_modalities(tmp_path: Path, read_alone):
    """MR is no CT, of which values are HU; pictures have no modality to be chosen by."""
    mr = new_bundle("heart_mr_segresnet_segmentation", "segresnet", "heart", tmp_path).folder
    train, inference = config(mr, "train"), config(mr, "inference")
    assert train["modality"] == "MR"
    assert inference["modality"] == "$@settings.get('modality', 'MR')"
    assert train["intensity"]["_target_"] == "NormalizeIntensityd"
    assert inference["intensity"]["default"]["_mode_"] == "callable"
    us = new_bundle("heart_us_segresnet_segmentation", "segresnet", "heart", tmp_path).folder
    assert "modality" not in config(us, "train")
    for metadata, modality, dims in (
        (config(mr, "metadata"), "MR", 3),
        (config(us, "metadata"), "US", 2),
    ):
        image = metadata["network_data_format"]["inputs"]["image"]
        assert (image["modality"], len(image["spatial_shape"])) == (modality, dims)
        assert image["format"] == "magnitude"


@pytest.mark.parametrize(
    ("network", "multiple", "expected"),
    [
        (
            {"_target_": "UNet", "channels": [4, 8, 8], "strides": [2, 2]},
            4,
            {"channels": [4, 8, 8], "strides": [2, 2], "spatial_dims": 2},
        ),
        ("monai.networks.nets.SegResNet", 8, {"_target_": "monai.networks.nets.SegResNet"}),
        (
            "LightMUNet",
            1,
            {
                "_target_": "common.networks.LightMUNet",
                "_requires_": {"_target_": "common.zoo.check_version", "required": "0.1.0"},
            },
        ),
    ],
    ids=["arguments", "MONAI's", "ours"],
)
def test_classes_of_networks(tmp_path: Path, network: Any, multiple: int, expected: dict):
    bundle = new_bundle("lung_cxr_x_segmentation", network, "lung", tmp_path).folder
    train = config(bundle, "train")
    assert train["network_input"]["multiple_of"] == multiple
    assert expected.items() <= train["network_def"].items()
    default = config(bundle, "inference")["network_def"]["default"]
    assert train["network_def"].items() <= default.items()


SMALL_2D = {"features": [4, 8], "depths": [1, 1], "decoder_depths": [1, 1]}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"name": "liver"},
            r"The name is 'liver'; .*: <anatomy>_<modality>_<network>_segmentation",
        ),
        ({"name": "Liver_ct_a_segmentation"}, "The name is 'Liver_ct_a_segmentation'; allowed are"),
        ({"name": "liver_xx_a_segmentation"}, "modality one of ct, mr, pet, cxr, xr, us"),
        ({"name": "liver_ct_deepedit_segmentation"}, "the name contains 'deepedit', from which"),
        ({"classes": ""}, "classes are ''; allowed are different names"),
        ({"classes": "liver,liver"}, "classes are 'liver,liver'; allowed"),
        ({"classes": ["background", "liver"]}, "without the background's"),
        ({"classes": "Background,liver"}, "without the background's"),
        ({"classes": "liver,Liver"}, "classes are 'liver,Liver'; allowed are different names"),
        ({"classes": "['liver','tumour']"}, "allowed are different names, .* of letters, digits"),
        ({"classes": "_liver"}, "first a letter or a digit"),
        ({"classes": 5}, "classes are 5; allowed are"),
        ({"output": "x" * 300}, r"cannot be written \(.*File name too long"),
        (
            {"network": {"_target_": "SegResNet", "init_filters": "$open('/tmp/a', 'w')"}},
            r"^You gave .*open.* as network#init_filters, which might run any code .* are words\.",
        ),
        (
            {"network": {"_target_": "SegResNet", "init_filters": {"_target_": "os.getcwd"}}},
            "^You gave 'os.getcwd' as network#init_filters, which might run any code",
        ),
        ({"network": "SegResNot"}, "There is no network 'SegResNot'; allowed are .*segresnet"),
        ({"network": "torch.nn.Conv3d"}, "There is no network 'torch.nn.Conv3d'"),
        ({"network": 5}, "There is no network 5; allowed are"),
        ({"network": {"channels": [2]}}, "There is no network {'channels'"),
        ({"network": "UNet"}, "UNet needs channels and strides; allowed is a network with its arg"),
        ({"network": "Discriminator"}, "has no argument in_channels"),
        (
            {"network": {"_target_": "SegResNet", "init_filter": 8}},
            "SegResNet has no argument init_filter; the nearest is init_filters",
        ),
        (
            {"network": {"_target_": "VMUNet", **SMALL_2D}},
            r"VMUNet makes no logits of 3 classes, .* of 128 x 128 x 128 voxels",
        ),
        (
            {"network": {"_target_": "DenseNet", "init_features": 4, "block_config": [1]}},
            r"DenseNet makes no logits of 3 classes, .*\(it makes 1 x 3\)",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path: Path, given: dict, sentence: str):
    sound = {"name": NAME, "network": "segresnet", "classes": "liver,tumour"}
    place = {"output": tmp_path / given.get("output", "new/bundles")}
    with pytest.raises(InputError, match=sentence) as refused:
        new_bundle(**(sound | given | place))
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


NNUNET = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 8],
}
SUPERVISED = {"deep_supervision": True, "deep_supr_num": 1}


@pytest.mark.parametrize(
    ("target", "makes"), [("DynUNet", "1 x 2 x 2 x 64 x 64"), ("common.networks.DynUNet", "a list")]
)
def test_what_needs_another_loss_is_refused(tmp_path: Path, read_alone, target: str, makes: str):
    name, network = "lung_cxr_x_segmentation", {"_target_": target, **NNUNET}
    with pytest.raises(
        InputError,
        match=f"{target} makes in training no logits of 2 classes .*it makes {makes}.*; allowed "
        "are networks that do, with deep_supervision False where .*: .*segresnet",
    ):
        new_bundle(name, network | SUPERVISED, "lung", tmp_path)
    assert list(tmp_path.iterdir()) == []
    if target == "DynUNet":
        network["deep_supervision"] = False
        new_bundle(name, network, "lung", tmp_path)


def test_each_axis_counts_for_the_multiple(tmp_path: Path, read_alone):
    """Here the second alone is halved."""
    strides: dict[str, Any] = {"strides": [1, [1, 2], 1], "upsample_kernel_size": [[1, 2], 1]}
    network = {"_target_": "DynUNet", **NNUNET, **strides}
    bundle = new_bundle("lung_cxr_x_segmentation", network, "lung", tmp_path).folder
    assert config(bundle, "train")["network_input"]["multiple_of"] == 2


def test_what_is_there_stays(tmp_path: Path):
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{NAME} is there already; allowed is a name that is not"):
        new_bundle(NAME, "segresnet", "liver", tmp_path)
    assert (tmp_path / NAME / "notes.txt").read_text() == "mine"


def test_what_would_not_be_sound_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(bundle: Path) -> Iterator[tuple[str, list[str]]]:
        edit(bundle, "metadata", lambda x: x.update(organ=""))
        yield from verify(bundle)

    monkeypatch.setattr(new, "verify", failing)
    with pytest.raises(
        InputError, match="as it would not pass metadata: organ is missing or empty"
    ):
        new_bundle(NAME, "segresnet", "liver", tmp_path / "new/bundles")
    assert list(tmp_path.iterdir()) == []

    def at_length(bundle: Path) -> Iterator[tuple[str, list[str]]]:
        yield "network", [f"{bundle}/configs/train.json cannot be built:\nTraceback\n"]

    monkeypatch.setattr(new, "verify", at_length)
    with pytest.raises(InputError) as refused:
        new_bundle(NAME, "segresnet", "liver", tmp_path)
    assert str(refused.value) == (
        f"{NAME} is not made, as it would not pass network: "
        f"{tmp_path}/{NAME}/configs/train.json cannot be built:."
    )


def test_packages_without_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(new, "collection", lambda: None)
    with pytest.raises(InputError, match="came without the collection's bundles"):
        new_bundle(NAME, "segresnet", "liver", tmp_path)
