from __future__ import annotations

import pytest
import torch

from common.losses import DiceCELoss, VAERegularisedLoss


def test_sum_of_both_terms():
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    logits = torch.rand(2, 3, 8, 8, requires_grad=True)
    target = torch.randint(3, (2, 1, 8, 8))
    branch = torch.tensor([2.0, 2.0], requires_grad=True)
    whole = VAERegularisedLoss(loss)([logits, branch], target)
    torch.testing.assert_close(whole, loss(logits, target) + 0.2)
    whole.backward()
    torch.testing.assert_close(branch.grad, torch.full((2,), 0.05))


def test_sixteen_bits():
    branch = torch.full((2,), 60000.0, dtype=torch.float16)
    whole = VAERegularisedLoss(lambda logits, target: logits.sum(), weight=0.5)
    assert whole([torch.zeros(1), branch], torch.zeros(1)) == 30000


def test_negative_weight():
    with pytest.raises(ValueError, match=r"weight is -1; allowed are numbers from 0\."):
        VAERegularisedLoss(torch.nn.MSELoss(), weight=-1)
