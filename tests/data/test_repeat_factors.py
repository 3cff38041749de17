from itertools import islice
from math import sqrt
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader

from sepc_zoo.data import Annotations, DetectionDataset, Record, make_loader
from sepc_zoo.data.dataset import EpochSampler
from sepc_zoo.data.sampling import draw_epoch, epoch_length, repeat_factors

NAMES = ("common", "rare", "crowded", "absent")
# Labels of each image; those of crowds are negative: -1 - label.
IMAGES = [(0,)] * 6 + [(0, 0, 1), (1, -3), (0, -3, 2), ()]
FACTORS = torch.tensor([1.0, 1.0, 1.3, 2.0, 2.75, 1.0, 1.5], dtype=torch.float64)


def annotations(images=IMAGES):
    return Annotations(tuple(record(i, x) for i, x in enumerate(images)), NAMES, (None,) * 4)


def record(image_id, entries):
    labels = torch.tensor([max(x, -1 - x) for x in entries], dtype=torch.int64)
    crowds = torch.tensor([x < 0 for x in entries], dtype=torch.int64)
    boxes = torch.tensor([[1.0, 2, 5, 6]]).repeat(len(entries), 1)
    path, area = Path(f"{image_id}.png"), torch.ones(len(entries), dtype=torch.float64)
    return Record(image_id, path, (8, 8), boxes, labels, crowds, area, boxes.double())


def naive_factors(images, threshold):
    """The definition, loop by loop."""
    of_class = []
    for label in range(len(NAMES)):
        fraction = sum(label in labels for labels in images) / len(images)
        of_class.append(max(1.0, sqrt(threshold / fraction)) if fraction else 1.0)
    own = [[label for label in labels if label >= 0] for labels in images]
    return of_class, [max((of_class[label] for label in labels), default=1.0) for labels in own]


@pytest.mark.parametrize("threshold", [0.001, 0.1, 0.3, 0.6, 1.0])
def test_factors_equal_a_naive_loop(threshold):
    of_class, of_image = repeat_factors(annotations(), threshold)
    expected = naive_factors(IMAGES, threshold)
    assert of_class.tolist() == pytest.approx(expected[0])
    assert of_image.tolist() == pytest.approx(expected[1])


def test_a_class_on_a_hundredth_of_the_threshold_comes_ten_times():
    """A class on one of 1000 images, threshold 0.1: sqrt(0.1 / 0.001) = 10."""
    of_class, of_image = repeat_factors(annotations([(1, 0)] + [(0,)] * 999), 0.1)
    assert of_class.tolist() == pytest.approx([1, 10, 1, 1])
    assert of_image.tolist() == pytest.approx([10] + [1] * 999)


def test_crowds_and_images_without_boxes_are_not_repeated():
    _, of_image = repeat_factors(annotations([(-2,), (), (0,), (0, 1)]), 1.0)
    assert of_image.tolist() == pytest.approx([1, 1, sqrt(2), 2])
    assert repeat_factors(annotations([()]), 1.0)[1].tolist() == [1]


def counts_of(factors, seed):
    indices = draw_epoch(factors, torch.Generator().manual_seed(seed))
    return (indices % len(factors)).bincount(minlength=len(factors))


@pytest.mark.parametrize("seed", range(20))
def test_an_image_comes_as_often_as_its_factor_rounded_up_or_down(seed):
    counts = counts_of(FACTORS, seed)
    assert counts.sum() == epoch_length(FACTORS) == 10
    assert ((counts == FACTORS.floor()) | (counts == FACTORS.ceil())).all()


def test_images_come_as_often_as_their_factor_in_the_mean():
    """The length is rounded down, from 10.55 to 10 images; with many images that is nothing."""
    factors = FACTORS.repeat(20)
    mean = torch.stack([counts_of(factors, seed) for seed in range(400)]).double().mean(dim=0)
    mean = mean.view(20, -1).mean(dim=0)
    torch.testing.assert_close(mean, FACTORS, atol=0.02, rtol=0)


@pytest.mark.parametrize("value", [1.0, 2.0, 1.1, 1 / 3 + 1])
def test_the_length_is_kept_whatever_the_rounding_of_the_sum(value):
    factors = torch.full((3001,), value, dtype=torch.float64)
    for seed in range(5):
        counts = counts_of(factors, seed)
        assert counts.sum() == epoch_length(factors)
        assert int(value) <= counts.min() <= counts.max() <= int(value) + 1


def test_copies_of_an_image_have_indices_of_their_own():
    indices = draw_epoch(FACTORS, torch.Generator().manual_seed(0))
    assert len(indices.unique()) == len(indices)
    copies = (indices // len(FACTORS))[indices % len(FACTORS) == 4]
    assert sorted(copies.tolist()) == [*range(len(copies))]


class RandomImages(DetectionDataset):
    """A data set that reads no files."""

    def read(self, index):
        image, target = torch.zeros(3, 8, 8, dtype=torch.uint8), {"image_id": index}
        return image, target | {"boxes": torch.zeros(0, 4), "unreadable": []}


@pytest.fixture
def dataset():
    def noise(image, target):
        return torch.randint_like(image, 256), target

    return RandomImages(annotations(IMAGES[: len(FACTORS)]), noise, seed=3, factors=FACTORS)


def test_copies_of_an_image_are_augmented_in_different_ways(dataset):
    (first, one), (second, other) = dataset[2], dataset[2 + len(dataset)]
    assert one["image_id"] == other["image_id"] == 2
    assert not torch.equal(first, second)
    assert torch.equal(second, dataset[2 + len(dataset)][0])


def test_the_order_is_a_function_of_seed_and_epoch(dataset):
    first = list(EpochSampler(dataset, 0))
    assert list(EpochSampler(dataset, 0)) == first
    assert list(EpochSampler(dataset, 1)) != first
    dataset.set_epoch(1)
    assert list(EpochSampler(dataset, 0)) != first


def load(dataset, workers=0):
    how = {"seed": 0, "workers": workers, "multiple": 8, "drop_last": False}
    return make_loader(dataset, 2, shuffle=True, **how)


def ids(batches):
    return [[target["image_id"] for target in batch.targets] for batch in batches]


def test_processes_share_the_repeated_images(dataset):
    alone = ids(load(dataset))
    shares = [
        ids(prepare_data_loader(load(dataset), num_processes=2, process_index=i, even_batches=True))
        for i in range(2)
    ]
    assert len(alone) == len(load(dataset)) == 5
    assert shares == [alone[0::2], [*alone[1::2], alone[0]]]  # as many batches for each


def test_an_epoch_goes_on_where_it_was_left(dataset):
    from accelerate import skip_first_batches

    rest = skip_first_batches(load(dataset, workers=1), 2)
    expected = islice(load(dataset), 2, None)
    for batch, other in zip(rest, expected, strict=True):
        assert ids([batch]) == ids([other])
        assert torch.equal(batch.images, other.images)


def test_partners_of_a_mix_come_as_often_as_their_factor(dataset):
    torch.manual_seed(0)
    drawn = [dataset.draw()[1]["image_id"] for _ in range(4000)]
    counts = torch.tensor(drawn).bincount(minlength=len(FACTORS)).double()
    torch.testing.assert_close(counts / len(drawn), FACTORS / FACTORS.sum(), atol=0.02, rtol=0)


def test_a_subset_keeps_the_factors_of_its_images(dataset):
    assert torch.equal(dataset.subset([4, 2]).factors, FACTORS[[4, 2]])
