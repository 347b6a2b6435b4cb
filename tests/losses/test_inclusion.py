import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor

from common.blocks import Codebook
from common.errors import InputError
from common.losses import CodebookMambaLoss, InclusionLoss


def logits_of(liver: float, tumour: float) -> Tensor:
    """Logits of these probabilities everywhere."""
    p = torch.tensor([liver, tumour]).logit()
    return p[None, :, None, None, None].expand(2, 2, 3, 4, 5).clone()


@pytest.mark.parametrize(
    ("liver", "tumour", "expected"),
    [(1.0, 1.0, 0.0), (1.0, 0.3, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (0.5, 0.8, 0.4)],
)
def test_inclusion_is_the_tumours_share_outside(liver: float, tumour: float, expected: float):
    loss = InclusionLoss()(logits_of(liver, tumour))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_inclusion_grows_with_the_tumour_outside_alone():
    inside, outside = (
        [float(InclusionLoss()(logits_of(liver, tumour))) for tumour in (0.1, 0.4, 0.9)]
        for liver in (1.0, 0.2)
    )
    assert inside == [0, 0, 0]
    assert outside == sorted(set(outside))


def test_inclusion_pushes_the_tumour_down_and_the_liver_up():
    logits = torch.randn(1, 2, 4, 4, 4, requires_grad=True)
    InclusionLoss()(logits).backward()
    assert (logits.grad[:, 0] < 0).all()  # descent raises the liver
    assert (logits.grad[:, 1] > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("liver", [-1e4, 0, 1e4, -torch.inf, torch.inf])
@pytest.mark.parametrize("tumour", [-1e4, 0, 1e4, -torch.inf, torch.inf])
def test_saturated_logits_give_numbers(liver: float, tumour: float, dtype: torch.dtype):
    logits = torch.tensor([liver, tumour], dtype=dtype).reshape(1, 2, 1, 1, 1).requires_grad_()
    loss = InclusionLoss()(logits)
    loss.backward()
    assert 0 <= loss <= 1
    assert torch.isfinite(logits.grad).all()


def test_whole_loss_is_its_terms_sum():
    torch.manual_seed(0)
    logits, codebook_loss = torch.randn(2, 2, 4, 4, 4), torch.tensor([1.0, 3.0])
    target = (torch.rand(2, 2, 4, 4, 4) > 0.5).to(torch.uint8)
    p = logits.sigmoid()
    segmentation = DiceLoss()(p, target) + torch.nn.BCELoss()(p, target.float())
    inclusion = (p[:, 1] * (1 - p[:, 0])).mean()

    output = (logits, codebook_loss, torch.zeros(2, 1, 1, 1))
    expected = segmentation + 0.4 * 2 + 0.6 * inclusion
    torch.testing.assert_close(CodebookMambaLoss()(output, target), expected)
    expected = segmentation + 0.1 * 2
    torch.testing.assert_close(CodebookMambaLoss(alpha=0.1, beta=0)(output, target), expected)
    expected = segmentation + 0.6 * inclusion
    torch.testing.assert_close(CodebookMambaLoss()(logits, target), expected)


def test_whole_loss_of_saturated_logits():
    logits = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1, 1).requires_grad_()
    target = torch.tensor([0, 1]).reshape(1, 2, 1, 1, 1)
    loss = CodebookMambaLoss()(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_bad_arguments_are_named():
    x = torch.zeros(1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match="logits has 3 channels; allowed are 2, liver and tumour"):
        InclusionLoss()(x)
    with pytest.raises(ValueError, match="target has 3 channels"):
        CodebookMambaLoss()(x[:, :2], x)
    with pytest.raises(ValueError, match="alpha is -1; allowed are numbers from 0"):
        CodebookMambaLoss(alpha=-1)
    with pytest.raises(ValueError, match="beta is -1"):
        CodebookMambaLoss(beta=-1)


def test_targets_of_other_channels_are_the_users_to_mend():
    with pytest.raises(InputError, match="target has 1 channels; allowed are 2, liver and tumour"):
        CodebookMambaLoss()(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))


@pytest.mark.parametrize("alpha", [0.4, 0.0])
def test_prototypes_have_no_gradient_but_the_codebooks_loss(alpha: float):
    """Straight through: with alpha 0 they stay where they started."""
    codebook = Codebook(4, 2)
    z = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    logits, codebook_loss, _ = codebook(z)
    CodebookMambaLoss(alpha=alpha)((logits, codebook_loss), torch.zeros_like(logits)).backward()
    assert z.grad.any()
    assert bool(codebook.prototypes.grad.any()) == (alpha > 0)
