from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader

from sepc_zoo.data import (
    Augmentation,
    DetectionDataset,
    Mixer,
    collate,
    make_loader,
    read_data,
    train_transform,
    write_shapes,
)


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    root = write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=7, val=0, size=(48, 64))
    return read_data(root, "train")


@pytest.fixture
def dataset(annotations):
    augmentation = Augmentation(color_jitter=True, scale=(0.5, 1.5))
    transform = train_transform(48, 64, antialias=True, augmentation=augmentation)
    return DetectionDataset(annotations, transform, seed=3)


def load(dataset, workers=0, shuffle=True, seed=0, drop_last=False):
    return make_loader(
        dataset,
        batch_size=2,
        shuffle=shuffle,
        seed=seed,
        workers=workers,
        multiple=32,
        drop_last=drop_last,
    )


def order(loader):
    return [target["image_id"] for batch in loader for target in batch.targets]


def equal(batches, others):
    return all(
        torch.equal(a.images, b.images)
        and all(
            torch.equal(s["boxes"], t["boxes"]) for s, t in zip(a.targets, b.targets, strict=True)
        )
        for a, b in zip(batches, others, strict=True)
    )


def test_augmentation_is_a_function_of_seed_epoch_and_index(dataset, annotations):
    first = dataset[2][0]
    torch.manual_seed(99)
    assert torch.equal(dataset[2][0], first)
    other_seed = DetectionDataset(annotations, dataset.transform, seed=4)
    assert not torch.equal(other_seed[2][0], first)
    dataset.set_epoch(1)
    assert not torch.equal(dataset[2][0], first)
    dataset.set_epoch(0)
    assert torch.equal(dataset[2][0], first)


def test_indexing_and_loading_leave_the_random_state_alone(dataset):
    before = torch.get_rng_state()
    dataset[0]
    list(load(dataset))
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_are_copies(dataset):
    before = dataset.annotations.records[0].boxes.clone()
    plain = DetectionDataset(dataset.annotations, lambda image, target: (image, target))
    plain[0][1]["boxes"].zero_()
    assert torch.equal(dataset.annotations.records[0].boxes, before)


def test_persistent_workers_load_the_same_batches_as_the_main_process(dataset):
    alone, helped = load(dataset), load(dataset, workers=1)
    seen = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        seen.append(list(alone))
        assert equal(seen[-1], list(helped))
    assert not torch.equal(seen[0][0].images, seen[1][0].images)


def test_shuffling_is_a_function_of_seed_and_epoch(dataset):
    first = order(load(dataset))
    assert order(load(dataset)) == first
    assert sorted(first) == list(range(1, 8))
    assert order(load(dataset, seed=1)) != first
    dataset.set_epoch(1)
    assert order(load(dataset)) != first


def test_without_shuffling_images_come_in_order_and_the_last_batch_may_be_dropped(dataset):
    assert order(load(dataset, shuffle=False)) == list(range(1, 8))
    assert order(load(dataset, shuffle=False, drop_last=True)) == list(range(1, 7))


def test_a_prepared_loader_follows_its_epoch(dataset):
    prepared = Accelerator(cpu=True).prepare(load(dataset))
    for epoch in (0, 1, 5):
        prepared.set_epoch(epoch)
        batches = list(prepared)
        assert dataset.epoch == epoch
        assert equal(batches, list(load(dataset)))


def test_a_prepared_loader_counts_epochs_by_itself(dataset):
    prepared = Accelerator(cpu=True).prepare(load(dataset))
    first = order(prepared)
    assert order(prepared) != first
    assert dataset.epoch == 1


def test_processes_share_the_batches_of_an_epoch(dataset):
    dataset.set_epoch(4)
    alone = order(load(dataset, drop_last=True))
    dataset.set_epoch(0)
    shares = [
        prepare_data_loader(
            load(dataset, drop_last=True), num_processes=2, process_index=i, even_batches=False
        )
        for i in (0, 1)
    ]
    for share in shares:
        share.set_epoch(4)
    assert order(shares[0]) == alone[:2]
    assert order(shares[1]) == alone[2:4]
    assert dataset.epoch == 4


def test_a_subset_has_the_chosen_images(dataset):
    subset = dataset.subset([4, 0])
    assert [subset[i][1]["image_id"] for i in range(len(subset))] == [5, 1]
    assert subset.annotations.label_names == dataset.annotations.label_names


def test_a_batch_is_padded_to_a_multiple_and_normalised_on_the_device():
    target = {"boxes": torch.zeros(0, 4)}
    samples = [(torch.ones(3, *size, dtype=torch.uint8), target) for size in ((10, 40), (33, 5))]
    batch = collate(samples, multiple=32)
    assert batch.images.shape == (2, 3, 64, 64)
    assert batch.image_sizes == [(10, 40), (33, 5)]
    assert [target["image_size"] for target in batch.targets] == batch.image_sizes
    assert batch.images.sum() == 3 * (10 * 40 + 33 * 5)
    normalized = batch.normalized((0.5,) * 3, (0.25,) * 3)
    assert normalized.images.dtype == torch.float32
    for image, (height, width) in zip(normalized.images, batch.image_sizes, strict=True):
        inside = image[:, :height, :width]
        torch.testing.assert_close(inside, torch.full_like(inside, (1 / 255 - 0.5) / 0.25))
        assert (image != 0).sum() == inside.numel()  # the padding stays 0
    moved = batch.normalized((0.5,) * 3, (0.25,) * 3, device="meta")
    assert moved.images.device.type == "meta"
    assert moved.targets[0]["boxes"].device.type == "cpu"


@pytest.mark.parametrize(
    ("size", "side"),
    [((96, 128), (24, 32)), ((96, 128), (25, 32)), ((96, 126), (25, 32)), ((48, 64), (48, 64))],
)
@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_an_image_decoded_at_a_fraction_of_its_size_has_the_same_boxes(size, side, hflip, tmp_path):
    root = write_shapes(tmp_path / "shapes", train=3, val=0, size=size)
    annotations = read_data(root, "train")
    asked = Augmentation(hflip=hflip, scale=(0.7, 1.0))
    transform = train_transform(*side, antialias=True, augmentation=asked)
    whole = DetectionDataset(annotations, transform)
    part = DetectionDataset(annotations, transform, largest=asked.largest(*side))
    for i in range(3):
        (image, target), (other, other_target) = whole[i], part[i]
        assert image.shape == other.shape
        for name, values in target.items():
            other_values = other_target[name]
            assert torch.equal(torch.as_tensor(values), torch.as_tensor(other_values)), name
        assert (image.float() - other.float()).abs().mean() < 4  # of 255


def test_an_image_is_decoded_at_the_smallest_sufficient_size(tmp_path):
    root = write_shapes(tmp_path / "shapes", train=1, val=0, size=(96, 128))
    annotations = read_data(root, "train")
    transform = train_transform(1, 1, antialias=True)
    sizes = {None: 96, (24, 32): 24, (25, 40): 48, (48, 40): 48, (49, 66): 96}
    for largest, size in sizes.items():
        dataset = DetectionDataset(annotations, transform, largest=largest)
        assert dataset.read(0)[0].shape == (3, size, size * 4 // 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_image_becomes_grey_and_its_target_names_it(workers, tmp_path):
    root = write_shapes(tmp_path / "shapes", train=2, val=0, size=(48, 64))
    annotations = read_data(root, "train")
    dataset = DetectionDataset(annotations, train_transform(48, 64, antialias=True))
    annotations.records[1].path.unlink()
    first, second = (target for batch in load(dataset, workers) for target in batch.targets)
    if first["unreadable"]:
        first, second = second, first
    assert (first["unreadable"], len(second["boxes"])) == ([], 0)
    assert "000002.jpg: No such file" in second["unreadable"][0]
    grey, _ = dataset.read(1)
    assert grey.unique().tolist() == [114]


MIXED = Augmentation(
    mosaic=0.5, mixup=0.5, copy_paste=0.5, crop=0.5, vflip=0.5, short_sides=(32, 48), mix_epochs=2,
    degrees=20, shear=10, translate=0.1, perspective=0.2, hue=0.1, saturation=0.5, brightness=0.3,
    blur=0.5, jpeg=0.5,
)  # fmt: skip


@pytest.fixture
def mixed_dataset(annotations):
    transform = train_transform(48, 64, antialias=True, augmentation=MIXED)
    mix = Mixer(MIXED, 48, 64, antialias=True)
    return DetectionDataset(annotations, transform, seed=3, mix=mix)


def test_mixed_images_are_the_same_with_any_number_of_workers(mixed_dataset):
    assert equal(load(mixed_dataset), load(mixed_dataset, workers=2))


def test_a_mixed_image_is_a_function_of_seed_epoch_and_index(mixed_dataset, annotations):
    first, target = mixed_dataset[2]
    torch.manual_seed(99)
    mixed_dataset[1]
    again, same = mixed_dataset[2]
    assert torch.equal(first, again)
    assert torch.equal(target["boxes"], same["boxes"])
    other_seed = DetectionDataset(annotations, mixed_dataset.transform, 4, mixed_dataset.mix)
    pairs = [(mixed_dataset[i][0], other_seed[i][0]) for i in range(7)]
    assert not all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", ["mosaic", "mixup", "copy_paste"])
def test_an_unreadable_image_is_named_in_the_target_of_a_mix(kind, tmp_path):
    root = write_shapes(tmp_path / "shapes", train=2, val=0, size=(48, 64))
    annotations = read_data(root, "train")
    asked = Augmentation(**{kind: 1.0})
    transform = train_transform(48, 64, antialias=True, augmentation=asked)
    mix = Mixer(asked, 48, 64, antialias=True)
    dataset = DetectionDataset(annotations, transform, mix=mix)
    annotations.records[1].path.unlink()
    messages = []
    for epoch in range(10):  # with itself at times
        dataset.set_epoch(epoch)
        messages += dataset[0][1]["unreadable"]
    assert set(messages) == {f"{annotations.records[1].path}: No such file or directory"}


def test_mixed_images_differ_by_epoch_and_stop_being_mixed(mixed_dataset):
    first = mixed_dataset[0][0]
    mixed_dataset.set_epoch(1)
    assert not torch.equal(first, mixed_dataset[0][0])
    mixed_dataset.set_epoch(2)
    count = len(mixed_dataset.annotations.records[0].boxes)
    assert len(mixed_dataset[0][1]["boxes"]) <= count


def test_mixing_keeps_to_the_largest_size(mixed_dataset):
    for epoch in range(3):
        mixed_dataset.set_epoch(epoch)
        for i in range(len(mixed_dataset)):
            image, target = mixed_dataset[i]
            assert sorted(image.shape[-2:]) <= [48, 64]
            assert len(target["boxes"]) == len(target["labels"]) == len(target["area"])


def test_images_of_five_channels_go_through_all_augmentations(annotations, tmp_path):
    tifffile = pytest.importorskip("tifffile")
    records = []
    for record in annotations.records[:4]:
        path = tmp_path / f"{record.image_id}.tif"
        image = (torch.arange(1, 6).view(-1, 1, 1) * torch.full(record.size, 20)).to(torch.uint8)
        tifffile.imwrite(path, image.numpy(), photometric="minisblack")
        records.append(replace(record, path=path))
    records[3].path.unlink()
    asked = Augmentation(
        mosaic=0.5, mixup=0.5, copy_paste=0.5, crop=0.5, degrees=20, shear=10, perspective=0.2,
        color_jitter=True, hue=0.1, saturation=0.5, brightness=0.3, blur=0.5, jpeg=0.5,
    )  # fmt: skip
    dataset = DetectionDataset(
        replace(annotations, records=tuple(records)),
        train_transform(48, 64, antialias=True, augmentation=asked),
        mix=Mixer(asked, 48, 64, antialias=True),
        channels=5,
    )
    for epoch in range(5):
        dataset.set_epoch(epoch)
        for batch in load(dataset):
            assert batch.images.shape[1] == 5
            assert batch.images.dtype == torch.uint8


def test_a_single_image_is_mixed_with_itself(mixed_dataset):
    alone = mixed_dataset.subset([0])
    for alone.seed in range(5):
        image, target = alone[0]
        assert sorted(image.shape[-2:]) <= [48, 64]
        assert target["image_id"] == 1
