import logging

import pytest
import torch
from ignite.engine import Engine, Events
from monai.losses import DeepSupervisionLoss

from common.losses import (
    DeepSupervisionDecay,
    WeightedDeepSupervisionLoss,
    deep_supervision_weights,
)


def test_weights_halve_but_for_the_coarsest():
    assert deep_supervision_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert deep_supervision_weights(2) == [1, 0]
    assert deep_supervision_weights(1) == [1]


def test_no_scale_is_refused():
    with pytest.raises(ValueError, match="scales is 0; allowed are whole numbers from 1"):
        deep_supervision_weights(0)


def scale_and_size(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A loss that tells a scale's logits and its target's size, so that a sum shows each weight."""
    return y.mean() * target.shape[-1]


def test_monai_weighs_each_scale_by_them():
    loss = DeepSupervisionLoss(scale_and_size, weights=deep_supervision_weights(4))
    logits = [torch.full((1, 2, n, n), float(n)) for n in (16, 8, 4, 2)]
    value = loss(logits, torch.zeros(1, 1, 16, 16))
    assert value.item() == pytest.approx((4 * 16**2 + 2 * 8**2 + 4**2) / 7)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((16, 8, 4, 2), (4 * 16**2 + 2 * 8**2 + 4**2) / 7),
        ((16, 8, 4), (2 * 16**2 + 8**2) / 3),
        ((16, 8), 16**2),
    ],
)
def test_weights_follow_the_number_of_scales(sizes: tuple[int, ...], expected: float):
    loss, target = WeightedDeepSupervisionLoss(scale_and_size), torch.zeros(1, 1, 16, 16)
    logits = [torch.full((1, 2, n, n), float(n)) for n in sizes]
    assert loss(logits, target).item() == pytest.approx(expected)
    assert loss(logits[0], target).item() == 16**2  # a network of one output


def alphas(last: int, done: int = 0) -> dict[int, float]:
    """Alpha of the total in each epoch of a training that has done some already."""
    loss = DeepSupervisionLoss(torch.nn.L1Loss())
    engine = Engine(lambda engine, batch: None)
    DeepSupervisionDecay(loss).attach(engine)
    if done:
        engine.load_state_dict({"epoch": done, "max_epochs": last, "epoch_length": 1})
    found = {}

    @engine.on(Events.ITERATION_COMPLETED)
    def measure(engine: Engine) -> None:
        one, zero = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
        assert float(loss([one, zero, zero, zero], zero)) == 1
        for scale in (1, 2, 3):
            scales = [zero] * 4
            scales[scale] = one
            found[engine.state.epoch] = float(loss(scales, zero))

    engine.run([0], max_epochs=last)
    return found


def test_coarser_scales_count_less_every_period():
    found = alphas(61)
    assert len(found) == 61
    assert [found[n] for n in (1, 30)] == pytest.approx([0.4] * 2)
    assert [found[n] for n in (31, 60)] == pytest.approx([0.32] * 2)
    assert found[61] == pytest.approx(0.256)


def test_resumed_training_goes_on_with_its_alpha(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert alphas(33, done=31) == pytest.approx({32: 0.32, 33: 0.32})
    assert caplog.text.count("Weight of the coarser scales' losses: 0.32") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": -1}, "start is -1; allowed are numbers from 0"),
        ({"factor": 0}, "factor is 0; allowed is 0 < factor <= 1"),
        ({"period": 0}, "period is 0; allowed are whole numbers from 1"),
        ({"scales": 0}, "scales is 0"),
    ],
)
def test_bad_arguments_of_the_decay_are_named(change: dict, message: str):
    with pytest.raises(ValueError, match=message):
        DeepSupervisionDecay(DeepSupervisionLoss(torch.nn.L1Loss()), **change)
