"""Networks in float32 against themselves in float64, whatever the layout, and under autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy import CASES, build, measure
from common.blocks import SS2D, Codebook, Mamba

# The largest error of the logits as a part of the largest, and of the gradients as a part of their
# norm: rounding an image moves gradients by as much, where it brings a ReLU to its other side.
LOGITS = 2e-4
# With the release's initial weights: rounding the image to float32 alone moves logits by 6e-5.
LOGITS_OF = {"MambaClinix": 5e-4}
GRADIENTS = 5e-2
SMALL = {2: (128, 128), 3: (64, 64, 64)}
TINY = {2: (32, 64), 3: (32, 32, 32)}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_float64s(name: str):
    """LightM-UNet's were off by 4e-4 to 3e-3 of the largest here."""
    size = SMALL[len(CASES[name].patch)]
    for errors in measure(name, size, [1, 2], gradients=False):
        assert errors.logits < LOGITS_OF.get(name, LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_equal_float64s_at_the_bundles_patch(name: str):
    for errors in measure(name, CASES[name].patch, [1, 2, 4], gradients=False):
        assert errors.logits < LOGITS_OF.get(name, LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_float64s(name: str):
    """At the bundles' patches `python -m benchmarks.accuracy --gradients` takes half an hour."""
    size = SMALL[len(CASES[name].patch)]
    for errors in measure(name, size, [1, 2, 4], gradients=True):
        assert errors.gradients < GRADIENTS


def gradients(network: nn.Module, x: Tensor) -> Tensor:
    """Of all parameters, for a fixed gradient of the logits."""
    network.zero_grad()
    output = network(x)
    logits = output if isinstance(output, Tensor) else output[0]
    generator = torch.Generator().manual_seed(2)
    logits.backward(torch.randn(logits.shape, generator=generator, dtype=logits.dtype))
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", CASES)
def test_gradients_do_not_depend_on_the_images_layout(name: str):
    """In float64: torch's norms of one item read some layouts' gradients in the wrong order."""
    network = build(name).double()
    size = TINY[len(CASES[name].patch)]
    x = torch.randn(1, 2, *size, dtype=torch.float64)[:, :1]
    layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d
    expected = gradients(network, x.contiguous())
    for other in (x, x.contiguous(memory_format=layout), x.movedim(-1, 1).movedim(1, -1)):
        assert (gradients(network, other) - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.usefixtures("whole_convolutions")
@pytest.mark.parametrize("name", CASES)
def test_scans_and_norms_are_float32_under_autocast(name: str):
    network = build(name)
    kinds = (Mamba, SS2D, Codebook, nn.GroupNorm, nn.LayerNorm, nn.modules.batchnorm._NormBase)
    dtypes: dict[str, torch.dtype] = {}
    left: list[str] = []  # autocast before Mamba, whose projections follow it on CUDA
    for place, module in network.named_modules():
        if isinstance(module, kinds):

            def note(_, inputs: tuple, output: Tensor | tuple, place: str = place) -> None:
                first = output if isinstance(output, Tensor) else output[0]
                dtypes[place] = first.dtype

            module.register_forward_hook(note)
        if isinstance(module, Mamba):

            def look(*_, place: str = place) -> None:
                if not torch.is_autocast_enabled("cpu"):
                    left.append(place)

            module.register_forward_pre_hook(look)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.randn(1, 1, *TINY[len(CASES[name].patch)]))
    logits = output if isinstance(output, Tensor) else output[0]
    assert logits.dtype == torch.bfloat16  # autocast was on elsewhere
    assert dtypes
    assert {place for place, dtype in dtypes.items() if dtype != torch.float32} == set()
    assert left == []


# The norm of what bfloat16 changes of the logits, as a part of theirs, at initial weights.
BFLOAT16 = 3e-2
# Here groups are of one channel, and instance norms of the deepest map of two voxels: they amplify.
BFLOAT16_OF = {
    **dict.fromkeys(("LightMUNet", "LightMUNet-2D", "UMambaBot"), 6e-2),
    **dict.fromkeys(("MambaClinix", "UMambaEnc-1"), 5e-1),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_in_bfloat16(name: str):
    """LightM-UNet's of an image without negative values were off by 0.17, and by 0.84 at most."""
    network = build(name).eval()
    x = torch.rand(1, 1, *TINY[len(CASES[name].patch)], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = network(x)
    assert 0 < (found - expected).norm() < BFLOAT16_OF.get(name, BFLOAT16) * expected.norm()


@pytest.mark.usefixtures("whole_convolutions")
@pytest.mark.parametrize("name", CASES)
def test_training_in_bfloat16(name: str):
    """On one image; the learning rate is that of many networks' first steps."""
    network = build(name)
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(1)
    size = TINY[len(CASES[name].patch)]
    x = torch.randn(1, 1, *size, generator=generator)
    target = (x > 0.5).long().squeeze(1)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = network(x)
        logits = output if isinstance(output, Tensor) else output[0]
        loss = F.cross_entropy(logits.float(), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    assert all(p.isfinite().all() for p in network.parameters())
