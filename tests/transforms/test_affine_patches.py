from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import ClassesToIndicesd, Compose, Transform
from scipy import ndimage, stats

from common.data import cached_dataset
from common.errors import InputError
from common.ignored import IGNORED
from common.transforms import RandAffinePatchesd
from common.workflows.batches import Batches, generators

SIZE = (20, 18, 14)


def case(shape: tuple[int, ...] = SIZE, classes: int = 3, **boxes: Any) -> dict[str, Any]:
    """An image of noise, and a label of background but for what stands in `boxes`."""
    affine = torch.diag(torch.tensor([1.5] * len(shape) + [1.0] * (4 - len(shape)))).double()
    generator = torch.Generator().manual_seed(0)
    image = MetaTensor(torch.rand(2, *shape, generator=generator), affine=affine)
    label = MetaTensor(torch.zeros(1, *shape), affine=affine)
    for name, where in boxes.items():
        label[0][where] = int(name.strip("c")) if name != "ignored" else IGNORED
    indices = ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=10000)
    return indices({"image": image, "label": label})


def patches(item: dict[str, Any], count: int, seed: int = 0, **options: Any) -> list[dict]:
    arguments: dict[str, Any] = {"patch_size": (8, 8, 8), "batch_size": 2} | options
    transform = RandAffinePatchesd("image", **arguments).set_random_state(seed)
    return [patch for _ in range(count) for patch in transform(item)]


def still(item: dict[str, Any], count: int, **options: Any) -> list[dict]:
    return patches(item, count, rotate_prob=0, scale_prob=0, **options)


def corner(item: dict[str, Any], patch: dict[str, Any]) -> list[int]:
    """Where in the volume a patch begins that was neither rotated nor scaled."""
    to_volume = np.linalg.inv(item["image"].affine.numpy()) @ patch["image"].affine.numpy()
    dims = item["image"].ndim - 1
    np.testing.assert_allclose(to_volume[:dims, :dims], np.eye(dims), atol=1e-12)
    return to_volume[:dims, -1].round().astype(int).tolist()


def within_three_sigma(counts: np.ndarray) -> None:
    n, p = counts.sum(), 1 / len(counts)
    assert np.abs(counts - n * p).max() < 3 * math.sqrt(n * p * (1 - p)), counts


def test_classes_of_the_centres_are_uniform_whatever_their_sizes():
    item = case(classes=4, c1=np.s_[5:14, 5:9, 5:9], c2=np.s_[6:8, 10:12, 6:8], c3=np.s_[9, 12, 8])
    found = still(item, 1000, patch_size=(5, 5, 5), foreground_fraction=1)
    centres = [int(patch["label"][0, 2, 2, 2]) for patch in found]
    within_three_sigma(np.bincount(centres, minlength=4)[1:])
    assert 0 not in centres
    voxels = [
        tuple(corner(item, patch))
        for patch, value in zip(found, centres, strict=True)
        if value == 2
    ]
    within_three_sigma(np.unique(voxels, axis=0, return_counts=True)[1])
    assert len(set(voxels)) == 8


def test_others_are_anywhere_up_to_the_borders():
    item = case(c1=np.s_[0, 0, 0])
    found = [corner(item, patch) for patch in still(item, 1000, foreground_fraction=0)]
    for axis, size in enumerate(SIZE):
        within_three_sigma(np.bincount([start[axis] for start in found], minlength=size - 7))
    assert max(start[2] for start in found) == SIZE[2] - 8


@pytest.mark.parametrize(
    ("batch_size", "num_samples", "fraction", "forced"),
    [(1, 1, 0.33, 1), (2, 1, 0.33, 1), (2, 2, 0.33, 1), (12, 1, 0.33, 4), (4, 4, 1, 16)],
)
def test_share_of_a_batch_on_foreground(
    batch_size: int, num_samples: int, fraction: float, forced: int
):
    """nnU-Net 2.8: samples from round(batch * (1 - fraction)) on, of 2 or more."""
    item = case((40, 40, 40), c1=np.s_[20, 20, 20])
    sizes = {"patch_size": (3, 3, 3), "batch_size": batch_size, "num_samples": num_samples}
    found = still(item, 3 * batch_size, foreground_fraction=fraction, **sizes)
    on = [bool(patch["label"].any()) for patch in found]
    size = batch_size * num_samples
    assert on == ([True] * forced + [False] * (size - forced)) * 3
    if size > 1:
        assert forced == size - round(size * (1 - fraction))


class Prepare(Transform):
    """A case of its number, or none that can be read."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["number"] == 3:
            raise InputError("3 cannot be read; allowed are others.")
        return case((30, 30, 30), c1=np.s_[15, 15, 15]) | {"number": item["number"]}


def loader(num_workers: int) -> DataLoader:
    """Of seven cases, one of which gives its place to the next, in batches of two."""
    sizes: dict[str, Any] = {"patch_size": (3, 3, 3), "batch_size": 2, "rotate_prob": 0}
    chain = Compose([Prepare(), Compose([RandAffinePatchesd("image", **sizes, scale_prob=0)])])
    cases = [{"number": number} for number in range(7)]
    dataset = cached_dataset(cases, chain, "none", strict=False)
    return DataLoader(dataset, batch_size=2, shuffle=True, num_workers=num_workers)


def epoch(engine: Any, epochs: int = 1) -> Iterator[list[bool]]:
    for number in range(epochs):
        engine.state.epoch = number + 1
        for batch in Batches(engine, seed=0):
            engine.state.iteration += 1
            yield batch["label"].flatten(1).any(1).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_batch_has_a_sample_on_foreground(num_workers: int):
    """With workers, a case that cannot be read, and a last batch that is shorter; and resumed."""
    state = SimpleNamespace(iteration=0, epoch=1, epoch_length=4)
    engine: Any = SimpleNamespace(data_loader=loader(num_workers), state=state)
    found = list(epoch(engine, 2))
    assert found == [[True, False], [True, False], [True, False], [True]] * 2
    state.iteration, state.epoch = 5, 2
    batches = Batches(engine, seed=0)
    batches.go_on(generators())
    rest = [batch["label"].flatten(1).any(1).tolist() for batch in batches]
    assert rest == [[True, False], [True, False], [True]]


def test_one_seed_one_series():
    item = case(c1=np.s_[5:9, 5:9, 5:9])
    first, again, other = (patches(item, 20, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["label"], two["label"])
    assert not all(
        torch.equal(one["image"], two["image"]) for one, two in zip(first, other, strict=True)
    )
    assert all(patch.keys() == {"image", "label"} for patch in first)


TURNED = {"rotate_prob": 1, "scale_prob": 1}


@pytest.mark.parametrize("size", [(8, 8, 8), (12, 10, 3), (9, 1, 8)])
def test_patches_are_what_scipy_reads_at_their_affine(size: tuple[int, ...]):
    """Beyond the volume, too: linear, of the label class by class, the one with the most."""
    item = case(c1=np.s_[2:12, 3:9, 2:9], c2=np.s_[8:15, 8:13, 5:12], ignored=np.s_[:4, :9, :6])
    for patch in patches(item, 12, patch_size=size, padding_value=-1.0, **TURNED):
        matrix = np.linalg.inv(item["image"].affine.numpy()) @ patch["image"].affine.numpy()
        assert abs(np.linalg.det(matrix) - 1) > 1e-3

        def at(volume: np.ndarray, beyond: float, matrix: np.ndarray = matrix) -> np.ndarray:
            return ndimage.affine_transform(
                volume.astype(float), matrix, output_shape=size, order=1, mode="grid-constant",
                cval=beyond,
            )  # fmt: skip

        for channel in range(2):
            expected = at(item["image"][channel].numpy(), -1.0)
            np.testing.assert_allclose(patch["image"][channel], expected, atol=2e-5)
        values = [0, IGNORED, 1, 2]
        label = item["label"][0].numpy()
        shares = np.stack([at(label == value, value == 0) for value in values])
        expected = np.array(values)[shares.argmax(0)]
        first, second = np.sort(shares, axis=0)[:-3:-1]
        clear = first - second > 1e-4
        assert (patch["label"][0].numpy() == expected)[clear].all()
        assert clear.mean() > 0.99
        assert patch["image"].dtype == patch["label"].dtype == torch.float32
        assert patch["image"].applied_operations == []


class Draws:
    """In place of random numbers, those given."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def uniform(self, *limits: float) -> float:
        return self.numbers.pop(0)

    def randint(self, low: Any, high: Any = None) -> Any:
        return low if high is not None else 0


@pytest.mark.parametrize(("size", "plane"), [((9, 9), (1, 2)), ((9, 2, 9), (1, 3))])
def test_rotation_by_a_right_angle(size: tuple[int, ...], plane: tuple[int, int]):
    item = case(size, c1=tuple(slice(2, 5) if n > 2 else slice(None) for n in size))
    transform = RandAffinePatchesd("image", size, 1, foreground_fraction=0, rotate_prob=1)
    transform.R = Draws(0.0, 1.0, math.pi / 2)  # type: ignore[assignment]
    [patch] = transform(item)
    for key in ("image", "label"):
        expected = torch.rot90(item[key].as_tensor(), -1, plane)
        torch.testing.assert_close(patch[key].as_tensor(), expected, atol=2e-5, rtol=0)
    assert patch["label"].sum() > 0


def test_no_corner_is_empty_within_the_volume():
    item = case((40, 40, 40), c1=np.s_[:, :, :])
    item["image"].fill_(7.0)
    found = patches(item, 50, patch_size=(12, 12, 12), **TURNED)
    inside = 0
    for patch in found:
        steps = np.linalg.inv(item["image"].affine.numpy()) @ patch["image"].affine.numpy()
        corners = np.stack(np.meshgrid(*[[0, 11]] * 3), -1).reshape(-1, 3)
        ends = corners @ steps[:3, :3].T + steps[:3, -1]
        if (ends >= 0).all() and (ends <= 39).all():
            inside += 1
            assert torch.allclose(patch["image"].as_tensor(), torch.tensor(7.0))
            assert (patch["label"] == 1).all()
        else:  # there it ends
            assert patch["image"].min() >= 0
    assert inside > 10


def test_volumes_smaller_than_the_patch_lie_in_the_middle():
    item = case((5, 8, 10), c1=np.s_[2, 3, 4])
    for fraction in (0, 1):
        for patch in still(item, 5, padding_value=-1, foreground_fraction=fraction):
            start = corner(item, patch)
            assert start[:2] == [-2, 0]
            z = start[2]
            assert torch.equal(
                patch["image"][:, 2:7].as_tensor(), item["image"][..., z : z + 8].as_tensor()
            )
            beyond = torch.cat([patch["image"][:, :2], patch["image"][:, 7:]], 1)
            assert (beyond == -1).all()
            assert patch["label"].sum() == 1
    for patch in patches(item, 5, padding_value=-1, **TURNED):
        assert patch["image"].shape == (2, 8, 8, 8)
        assert patch["image"].min() == -1


def test_what_nobody_labelled_stays_so_and_is_no_centre():
    item = case(ignored=np.s_[:, :, :])
    item["label"][0, 9:12, 9:12, 6:9] = 0
    item["label"][0, 10, 10, 7] = 1
    item = ClassesToIndicesd("label", num_classes=3)(item)
    for patch in patches(item, 40, **TURNED):
        assert {IGNORED, 0} <= set(patch["label"].unique().tolist()) <= {IGNORED, 0, 1}
    found = still(item, 500, patch_size=(3, 3, 3), foreground_fraction=0)
    assert all(patch["label"][0, 1, 1, 1] >= 0 for patch in found)
    places = np.unique([corner(item, patch) for patch in found], axis=0, return_counts=True)[1]
    assert len(places) == 27
    assert stats.chisquare(places).pvalue > 0.01


@pytest.mark.parametrize("label", [0, IGNORED])
def test_cases_without_foreground_give_patches_from_anywhere(label: int):
    item = case()
    item["label"].fill_(label)
    starts = {tuple(corner(item, patch)) for patch in still(item, 50, foreground_fraction=1)}
    assert len(starts) > 40


@pytest.mark.parametrize(
    ("size", "axes", "degrees"),
    [
        ((128, 128, 128), 3, 30),
        ((192, 192, 64), 3, 30),
        ((256, 256, 48), 2, 180),
        ((48, 256, 256), 2, 180),
        ((512, 512), 2, 180),
        ((384, 256), 2, 180),
        ((512, 256), 2, 15),
        ((256, 256, 1), 2, 180),
        ((512, 256, 1), 2, 15),
    ],
)
def test_rotations_are_nnunets_for_the_shape_of_the_patch(
    size: tuple[int, ...], axes: int, degrees: int
):
    transform = RandAffinePatchesd("image", size, 2)
    assert len(transform.planes) == (3 if axes == 3 else 1)
    assert math.degrees(transform.rotate_range) == pytest.approx(degrees)
    if axes == 2:
        assert int(np.argmin(size)) not in transform.planes[0] or len(size) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0; allowed are numbers from 1."),
        ({"num_samples": 0}, "num_samples is 0; allowed are numbers from 1."),
        ({"foreground_fraction": 33}, "foreground_fraction is 33; allowed are 0 to 1."),
        ({"scale_range": (0, 1)}, r"scale_range is \(0, 1\); allowed are two numbers above 0."),
        ({"patch_size": (8,)}, r"patch_size is \[8\]; allowed are two or three numbers."),
    ],
)
def test_numbers_that_are_refused(options: dict[str, Any], said: str):
    arguments: dict[str, Any] = {"patch_size": (8, 8), "batch_size": 2} | options
    with pytest.raises(InputError, match=f"^{said}$"):
        RandAffinePatchesd("image", **arguments)
