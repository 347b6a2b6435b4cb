import torch
from ignite.engine import Engine
from monai.metrics import DiceMetric

from common.evaluation import PerClassMetric


def test_scalars_per_class():
    batches = [
        [(torch.tensor([[1, 0, 1, 0]]), torch.tensor([[1, 0, 2, 2]]))],
        [(torch.tensor([[0, 2, 2, 2]]), torch.tensor([[0, 2, 2, 2]]))],
    ]

    def one_hot(classes: torch.Tensor) -> torch.Tensor:
        return torch.stack([(classes == c).float()[0] for c in range(3)])

    def pair(batch):
        return [one_hot(p) for p, _ in batch], [one_hot(y) for _, y in batch]

    engine = Engine(lambda _, batch: pair(batch))
    engine.state.metric_details = {}
    metric = PerClassMetric(
        DiceMetric(include_background=False, reduction="mean_batch"), lambda x: x
    )
    metric.attach(engine, "dice")
    metrics = engine.run(batches).metrics
    # class 1: 2/3, and absent from the second case; class 2: 0 and 1
    assert metrics.keys() == {"dice_class_1", "dice_class_2"}
    torch.testing.assert_close(metrics["dice_class_1"], 2 / 3)
    torch.testing.assert_close(metrics["dice_class_2"], 0.5)
    assert engine.state.metric_details["dice"].shape == (2, 2)
