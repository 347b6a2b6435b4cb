"""Inferers, with networks that say what the volume's voxels say, or that lie."""

from __future__ import annotations

import logging

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from common.errors import InputError
from common.inferers import CascadeInferer
from common.networks import ELANResMSCAUNet, LiverTumourCascade

LIVER, TUMOUR = 1.0, 2.0


def trained(liver: nn.Module, tumour: nn.Module) -> LiverTumourCascade:
    cascade = LiverTumourCascade(liver, tumour)
    for network in (liver, tumour):
        network.num_batches_trained.fill_(1)  # type: ignore[operator, union-attr]
    return cascade


def windows(roi, margin=8, reparameterize=False, **kwargs) -> CascadeInferer:
    return CascadeInferer(SlidingWindowInferer(roi, **kwargs), margin, reparameterize)


class Above(nn.Module):
    """Logits of what is above a value; refuses volumes as small as the real networks do."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert min(x.shape[2:]) >= 16
        self.seen.append(x)
        return torch.where(x > self.value, 4.0, -4.0)


class Everywhere(nn.Module):
    """A tumour in each voxel that it is shown."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:, :1], 9.0)


def volume(*boxes: tuple[slice, slice, slice]) -> Tensor:
    x = torch.zeros(1, 1, 40, 32, 24)
    for box in boxes:
        x[0, 0][box] = LIVER
    return x


SMALL = (slice(2, 5), slice(2, 5), slice(2, 5))
LARGE = (slice(20, 30), slice(10, 20), slice(4, 24))


def inside(x: Tensor, *box: slice) -> bool:
    """Whether a mask (h, w, d) is all of a box, and nothing else."""
    return bool(x[box].all()) and int(x.sum()) == x[box].numel()


@pytest.mark.parametrize("roi", [(16, 16, 16), (48, 48, 48)], ids=["windows", "larger than all"])
@pytest.mark.parametrize("margin", [0, 3, (1, 0, 5)])
def test_a_tumour_outside_the_livers_box_is_impossible(roi, margin):
    """Whatever the second network says."""
    cascade = trained(Above(0.5), Everywhere())
    logits = windows(roi, margin=margin, overlap=0.5, mode="gaussian")(
        volume(SMALL, LARGE), cascade
    )
    assert logits.shape == (1, 2, 40, 32, 24)
    liver, tumour = logits[0] > 0
    assert inside(liver, *LARGE)  # the largest component alone
    a, b, c = (margin,) * 3 if isinstance(margin, int) else margin
    assert inside(tumour, slice(20 - a, 30 + a), slice(10 - b, 20 + b), slice(max(4 - c, 0), 24))
    outside = logits[0, 1][~tumour]
    assert torch.equal(outside.sigmoid(), torch.zeros_like(outside))


def test_the_second_network_sees_the_box_alone():
    x, cascade = volume(LARGE), trained(Above(0.5), Above(1.5))
    x[0, 0, 22:25, 11:14, 6:9] = TUMOUR
    x[0, 0, 0, 0, 0] = TUMOUR  # of the first network another component
    logits = windows((16, 32, 32), margin=0, cval=-7)(x, cascade)
    seen = torch.cat(cascade.tumour.seen)
    assert set(seen.unique().tolist()) == {-7, LIVER, TUMOUR}  # padded up to the window
    assert inside(logits[0, 0] > 0, *LARGE)
    assert inside(logits[0, 1] > 0, slice(22, 25), slice(11, 14), slice(6, 9))


def test_the_second_network_sees_the_image_around_the_liver_as_it_is():
    x, cascade = volume(LARGE), trained(Above(0.5), Above(1.5))
    x[x == 0] = 0.25
    windows((16, 32, 32), margin=2, cval=-7)(x, cascade)
    seen = torch.cat(cascade.tumour.seen)
    assert set(seen.unique().tolist()) == {-7, 0.25, LIVER}
    assert int((seen[0] == LIVER).sum()) == x[0, 0][LARGE].numel()


def test_each_volume_of_a_batch_has_its_own_box():
    both = torch.cat([volume(LARGE), volume(SMALL)])
    cascade, infer = trained(Above(0.5), Everywhere()), windows((16,) * 3, margin=1)
    together = infer(both, cascade)
    assert torch.equal(together, torch.cat([infer(x, cascade) for x in both.split(1)]))
    assert inside(together[1, 1] > 0, slice(1, 6), slice(1, 6), slice(1, 6))


def test_probabilities_below_a_half_stay_for_the_interpolation():
    class Soft(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 4 * (x - 0.5)

    x = 0.4 * torch.rand(1, 1, 20, 20, 20)
    x[0, 0, 4:10, 4:10, 4:10] = 1
    x[0, 0, 14:16, 14:16, 14:16] = 1
    logits = windows((16,) * 3)(x, trained(Soft(), Everywhere()))
    removed = torch.zeros(20, 20, 20, dtype=torch.bool)
    removed[14:16, 14:16, 14:16] = True
    torch.testing.assert_close(logits[0, 0][~removed], Soft()(x)[0, 0][~removed])
    assert (logits[0, 0][removed].sigmoid() == 0).all()


def test_without_a_liver_there_is_no_tumour_and_a_warning(caplog: pytest.LogCaptureFixture):
    x = MetaTensor(torch.cat([volume(), volume(SMALL)]))
    x.meta["filename_or_obj"] = ["legs.nii.gz", "abdomen.nii.gz"]
    with caplog.at_level(logging.WARNING):
        logits = windows((16,) * 3)(x, trained(Above(0.5), Everywhere()))
    assert not (logits[0] > 0).any()
    assert (logits[1] > 0).any()
    (record,) = caplog.records
    assert record.getMessage() == "No liver was found in legs.nii.gz: no tumour is looked for."


def test_folded_networks_give_equal_logits_and_stay_as_they_were():
    torch.manual_seed(0)
    networks = [ELANResMSCAUNet(1, 1, widths=(2, 2, 4, 4, 4)) for _ in range(2)]
    for network in networks:
        network(torch.randn(1, 1, 32, 32, 32))  # statistics of the batch norms
        nn.init.constant_(network.heads[-1].bias, 1.0)
    cascade = trained(*networks).eval()
    names, x = cascade.state_dict().keys(), torch.randn(1, 1, 24, 20, 20)
    with torch.no_grad():
        plain, folded = (
            windows((16,) * 3, reparameterize=flag)(x, cascade) for flag in (False, True)
        )
    assert (plain > 0).any()
    assert not torch.equal(plain, folded)
    torch.testing.assert_close(folded, plain, rtol=0, atol=1e-4)
    assert cascade.state_dict().keys() == names


def test_what_it_cannot_use():
    x, infer = volume(SMALL), windows((16,) * 3)
    with pytest.raises(InputError, match="Conv3d has no stage liver; allowed is LiverTumourCasc"):
        infer(x, nn.Conv3d(1, 1, 1))
    half = trained(Above(0.5), Everywhere())  # without a batch norm that would tell
    half.tumour.num_batches_trained.zero_()
    with pytest.raises(InputError, match=r"tumour's network was never trained.*--stage tumor"):
        infer(x, half)
    with pytest.raises(InputError, match="The network liver is Above, which has no"):
        windows((16,) * 3, reparameterize=True)(x, trained(Above(0), Above(0)))
    with pytest.raises(InputError, match="margin is -1; allowed are whole numbers from 0"):
        windows((16,) * 3, margin=-1)
