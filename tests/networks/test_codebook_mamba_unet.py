from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MeanDice, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import Activationsd, AsDiscreted, Compose, Lambdad
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.blocks import Codebook, MambaMixer, ResidualMixer
from common.losses import CodebookMambaLoss
from common.networks import CodebookMambaUNet
from common.networks.codebook_mamba_unet import AttentionMixer, MultiScaleBlock

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "widths": (2, 2, 4, 4),
    "num_prototypes": 8,
    "prototype_dim": 8,
}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_parameters_are_the_papers():
    network = CodebookMambaUNet(1)
    assert parameters(network) == pytest.approx(1.26e6, rel=0.02)
    assert parameters(network) == 1_271_338
    # The two counts of table 3, whose labels are swapped there.
    assert parameters(network.mixer) == 32_768
    assert parameters(CodebookMambaUNet(1, mixer="attention").mixer) == 16_640
    assert network.codebook.prototypes.shape == (64, 64)


def test_operations_are_the_papers():
    network = CodebookMambaUNet(1, backend="torch").eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 1, 48, 256, 256, device="meta"))
    # Convolutions and matrix products; the paper's tool is not named and may count norms too.
    assert counter.get_total_flops() == pytest.approx(113.87e9, rel=0.02)


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 31, 16), (33, 47, 20)])
def test_any_size_from_sixteen(size: tuple[int, ...]):
    network = CodebookMambaUNet(**(SMALL | {"in_channels": 2}), out_channels=3)
    output = network(torch.randn(2, 2, *size))
    assert output.logits.shape == (2, 3, *size)
    assert output.codebook_loss.shape == (2,)
    assert output.codes.shape == (2, *(n // 16 for n in size))
    network.eval()
    assert network(torch.randn(1, 2, *size)).shape == (1, 3, *size)


def test_codes_are_those_of_training():
    network = CodebookMambaUNet(**SMALL)
    x = torch.randn(1, 1, 32, 48, 32)
    assert torch.equal(network.codes(x), network(x).codes)


def test_gradients_reach_every_parameter():
    # In double, where a gradient that only rounding leaves is far below the bound.
    torch.manual_seed(0)
    network = CodebookMambaUNet(1).double()
    target = (torch.rand(1, 2, 48, 32, 32) > 0.5).double()
    output = network(torch.randn(1, 1, 48, 32, 32, dtype=torch.float64))
    CodebookMambaLoss()(output, target).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-12, name


def test_segmentation_alone_trains_the_encoder_through_the_codebook():
    torch.manual_seed(0)
    network = CodebookMambaUNet(**SMALL)
    network(torch.randn(1, 1, 32, 32, 32)).logits.square().mean().backward()
    assert network.encoder[-1].fuse[0].weight.grad.abs().sum() > 0
    assert network.codebook.prototypes.grad is None


@pytest.mark.parametrize(
    ("change", "absent", "present"),
    [
        ({"codebook": False}, Codebook, MambaMixer),
        ({"multi_scale": False}, MultiScaleBlock, Codebook),
        ({"mixer": "attention"}, MambaMixer, AttentionMixer),
        ({"mixer": "conv"}, MambaMixer, ResidualMixer),
        ({"mixer": "identity"}, MambaMixer, Codebook),
    ],
)
def test_ablations(change: dict[str, Any], absent: type, present: type):
    network = CodebookMambaUNet(**SMALL, **change)
    kinds = {type(module) for module in network.modules()}
    assert absent not in kinds
    assert present in kinds
    output = network(torch.randn(1, 1, 32, 16, 16))
    assert isinstance(output, Tensor) == (not change.get("codebook", True))
    CodebookMambaLoss()(output, torch.zeros(1, 2, 32, 16, 16)).backward()


@pytest.mark.parametrize("num_prototypes", [8, 512])
def test_codebook_arguments(num_prototypes: int):
    change = {"num_prototypes": num_prototypes, "codebook_beta": 0.1, "codebook_init": "data"}
    network = CodebookMambaUNet(**(SMALL | change), restart_after=7)
    codebook = network.codebook
    assert codebook.prototypes.shape == (num_prototypes, 8)
    assert (codebook.beta, codebook.init, codebook.restart_after) == (0.1, "data", 7)
    assert network(torch.randn(1, 1, 32, 32, 32)).codes.max() < num_prototypes


def trained(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    network = CodebookMambaUNet(**SMALL, codebook_init="data", restart_after=1)
    optimizer = torch.optim.Adam(network.parameters())
    for _ in range(3):
        loss = CodebookMambaLoss()(
            network(torch.randn(1, 1, 32, 32, 32)), torch.zeros(1, 2, 32, 32, 32)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


def test_same_seed_same_training():
    first, second, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "change", [{}, {"codebook": False}, {"mixer": "attention"}, {"multi_scale": False}]
)
def test_scripted_equals_eager_at_every_size(tmp_path: Path, change: dict[str, Any]):
    # In double: the two run different backends in float32, and a code may flip by rounding.
    network = CodebookMambaUNet(**SMALL, **change).double().eval()
    torch.jit.save(torch.jit.script(network), tmp_path / "network.ts")
    scripted = torch.jit.load(tmp_path / "network.ts")
    with torch.no_grad():
        for size in ((32, 32, 32), (32, 32, 32), (17, 40, 31)):
            x = torch.randn(1, 1, *size, dtype=torch.float64)
            torch.testing.assert_close(scripted(x), network(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("codebook", [True, False])
def test_monai_trains_and_evaluates_it(codebook: bool):
    """MONAI's engines, with one postprocessing for both: the training output's first part."""
    torch.manual_seed(0)
    network = CodebookMambaUNet(**SMALL, codebook=codebook)
    label = torch.zeros(2, 1, 32, 32, 32)
    label[:, :, 8:24, 8:24, 8:24] = 1
    label[:, :, 12:20, 12:20, 12:20] = 2
    batch = {
        "image": MetaTensor(label + 0.1 * torch.randn(label.shape)),
        "label": MetaTensor(torch.cat([label >= 1, label == 2], dim=1).float()),
    }
    first: Callable = lambda pred: pred if isinstance(pred, Tensor) else pred[0]  # noqa: E731
    postprocessing = Compose(
        [
            Lambdad("pred", first),
            Activationsd("pred", sigmoid=True),
            AsDiscreted("pred", threshold=0.5),
        ]
    )
    before = {name: x.clone() for name, x in network.state_dict().items()}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.Adam(network.parameters()),
        loss_function=CodebookMambaLoss(),
        postprocessing=postprocessing,
        key_train_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
    )
    trainer.run()
    assert trainer.state.iteration == 2
    assert 0 <= trainer.state.metrics["dice"] <= 1
    assert [item["pred"].shape for item in trainer.state.output] == [(2, 32, 32, 32)] * 2
    after = network.state_dict()
    for name in ["encoder.0.fuse.0.weight", "head.weight"] + ["codebook.prototypes"] * codebook:
        assert not torch.equal(before[name], after[name]), name

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[batch],
        network=network,
        inferer=SlidingWindowInferer((16, 16, 32), overlap=0.5),
        postprocessing=postprocessing,
        key_val_metric={"dice": MeanDice(output_transform=from_engine(["pred", "label"]))},
    )
    evaluator.run()
    assert evaluator.state.output[0]["pred"].shape == (2, 32, 32, 32)
    assert evaluator.state.output[0]["pred"].unique().tolist() in ([0], [1], [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels is 0; allowed are whole numbers from 1"),
        ({"out_channels": 0}, "out_channels is 0"),
        ({"prototype_dim": 0}, "prototype_dim is 0"),
        ({"widths": ()}, r"widths is \(\); allowed"),
        ({"widths": (4, 0)}, r"widths is \(4, 0\)"),
        ({"num_prototypes": 0}, "num_prototypes is 0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CodebookMambaUNet(**(SMALL | change))


def test_bad_calls_are_named():
    with pytest.raises(ValueError, match="allowed is 16 and more along each axis"):
        CodebookMambaUNet(**SMALL)(torch.zeros(1, 1, 32, 15, 32))
    with pytest.raises(ValueError, match="codebook is False"):
        CodebookMambaUNet(**SMALL, codebook=False).codes(torch.zeros(1, 1, 16, 16, 16))
