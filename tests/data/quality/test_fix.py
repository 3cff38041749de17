import csv
import json
import os
import shutil

import pytest
import torch
from faulty import (
    FAULTS,
    adding_box,
    box_entry,
    break_everything,
    editing,
    give_two_files_one_id,
    image_entry,
    read_tables,
    write_good_data,
    write_picture,
    write_tables,
)
from PIL import Image
from test_check import write_voc

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.images import read_image
from sepc_zoo.data.quality import fix
from sepc_zoo.data.quality.check import check_data
from sepc_zoo.data.quality.fix import turn_box, write_clean_copy


@pytest.fixture
def data(tmp_path):
    return write_good_data(tmp_path / "data")


def copy_of(data, **kwargs):
    """Write a clean copy; return its folder and the texts of its changes."""
    target = data.with_name("clean")
    return target, [change.text for change in write_clean_copy(check_data(data), target, **kwargs)]


def state_of(folder):
    """Get the names, contents and times of the files in a folder."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def boxes_of(data, split="train"):
    return {record.path.name: record.boxes.tolist() for record in read_data(data, split).records}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_copy_lacks_the_fault_and_reports_the_change(kind, data):
    fault = FAULTS[kind]
    fault.break_data(data)
    target, changes = copy_of(data)
    assert any(fault.fixed in text for text in changes) == bool(fault.fixed)
    check = check_data(target)
    assert not check.has_errors()
    assert (
        fault.severity == "note"
        or not fault.fixed
        or kind not in {finding.kind for finding in check.findings}
    )
    for split in fault.splits.split():
        assert read_data(target, split).records


def test_data_with_every_fault_at_once_gives_a_copy_without_errors(data):
    break_everything(data)
    before = check_data(data)
    missed = {*FAULTS} - {finding.kind for finding in before.findings}
    # The first is reported only where the images of all splits are known.
    assert missed == {"unused image", "no boxes"}
    target, _ = copy_of(data)
    after = check_data(target)
    left = {f.kind for f in after.findings}
    assert left <= {
        *("picture twice in a split", "elongated box", "class without boxes"),
        *("image without boxes", "dark image"),
    }
    assert boxes_of(target).keys() == {
        *("train1.jpg", "train2.jpg", "train3.jpg", "turned.jpg", "copy.jpg"),
        *("swapped.jpg", "dark.jpg"),
    }
    assert boxes_of(target, "val").keys() == {"val1.jpg", "val2.jpg", "empty.jpg"}


def test_the_original_is_never_touched(data):
    break_everything(data)
    before = state_of(data)
    copy_of(data)
    assert state_of(data) == before


def test_good_data_is_copied_as_it_is(data):
    target, changes = copy_of(data)
    assert changes == []
    for split in ("train", "val"):
        for old, new in zip(
            read_data(data, split).records, read_data(target, split).records, strict=True
        ):
            assert (old.image_id, old.size, old.path.name) == (
                new.image_id,
                new.size,
                new.path.name,
            )
            assert old.path.read_bytes() == new.path.read_bytes()
            for column in ("boxes", "labels", "iscrowd", "area"):
                assert torch.equal(getattr(old, column), getattr(new, column))


def test_every_change_is_in_the_list_beside_the_copy(data):
    FAULTS["box without area"].break_data(data)
    FAULTS["missing image"].break_data(data)
    target, changes = copy_of(data)
    with (target / "changes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == changes
    assert rows[0]["split"] == "train"
    assert rows[0]["where"] == str(data / "train" / "train1.jpg")


def test_the_files_of_a_copy_are_no_links(data):
    target, _ = copy_of(data)
    copied = target / "train" / "train1.jpg"
    assert not copied.is_symlink()
    assert copied.stat().st_ino != (data / "train" / "train1.jpg").stat().st_ino


def test_a_linked_copy_shares_the_files(data):
    (data / "train" / "train2.jpg").rename(data / "train" / "real.jpg")
    (data / "train" / "train2.jpg").symlink_to("real.jpg")
    target, _ = copy_of(data, link=True)
    for copied, original in (("train1.jpg", "train1.jpg"), ("train2.jpg", "real.jpg")):
        assert not (target / "train" / copied).is_symlink()
        assert (target / "train" / copied).samefile(data / "train" / original)


def test_files_are_copied_where_links_fail(data, monkeypatch):
    def refuse(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(fix.os, "link", refuse)
    target, _ = copy_of(data, link=True)
    assert len(read_data(target, "train").records) == 3


@pytest.mark.parametrize("place", ["data", "data/clean", "data/../data/train/clean"])
def test_a_copy_does_not_go_into_the_data(place, data):
    with pytest.raises((DataError, FileExistsError)):
        write_clean_copy(check_data(data), data.parent / place)
    assert not (data / "clean").exists()


def test_an_existing_folder_is_not_overwritten(data):
    data.with_name("clean").mkdir()
    with pytest.raises(FileExistsError):
        copy_of(data)


def test_a_failure_leaves_nothing_behind(data, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fix, "write_coco", fail)
    with pytest.raises(KeyboardInterrupt):
        copy_of(data)
    assert list(data.parent.iterdir()) == [data]


def test_without_any_good_image_there_is_no_copy(data):
    for path in data.glob("*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match="no image is left"):
        copy_of(data)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_turned_box_holds_the_same_pixels(orientation, tmp_path):
    stored = Image.new("RGB", (64, 48))
    stored.paste("white", (10, 20, 18, 44))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    rows, columns = (read_image(tmp_path / "turned.png")[0] > 127).nonzero(as_tuple=True)
    x1, y1, x2, y2 = turn_box((10, 20, 18, 44), orientation, (48, 64))
    assert (x1, y1) == (columns.min(), rows.min())
    assert (x2, y2) == (columns.max() + 1, rows.max() + 1)


def test_boxes_that_fit_the_upright_image_alone_are_not_turned(data):
    FAULTS["size before EXIF rotation"].break_data(data)
    editing(lambda t: t["annotations"][0].update(bbox=[1, 40, 30, 20]))(data)
    target, changes = copy_of(data)
    assert [1, 40, 31, 60] in boxes_of(target)["train1.jpg"]
    assert not any("turned" in text for text in changes)


def test_an_image_without_boxes_gets_the_size_of_its_file(data):
    FAULTS["image without boxes"].break_data(data)
    FAULTS["wrong size"].break_data(data)
    target, _ = copy_of(data)
    assert read_tables(target, "train")["images"][0]["width"] == 64


def test_boxes_are_clipped_and_their_area_with_them(data):
    FAULTS["box over the border"].break_data(data)
    target, _ = copy_of(data)
    record = read_data(target, "train").records[0]
    assert record.boxes[2].tolist() == [40, 2, 64, 22]
    assert record.area[2] == 24 * 20


def test_boxes_of_an_image_listed_twice_are_joined(data):
    FAULTS["image listed twice"].break_data(data)
    adding_box([1, 2, 30, 20], image_id=9)(data)
    editing(lambda t: t["annotations"].append(box_entry(98, 9, 1, [10, 5, 20, 30])))(data)
    target, _ = copy_of(data)
    assert sorted(boxes_of(target)["train1.jpg"]) == [
        [1, 2, 31, 22],
        [10, 5, 30, 35],
        [20, 5, 40, 35],
    ]


@pytest.mark.parametrize(
    ("splits", "keeper"),
    [
        (("train", "val"), "val"),
        (("val", "test"), "test"),
        (("extra", "train"), "extra"),
        (("extra", "Train"), "extra"),
        (("Train", "dev"), "dev"),
    ],
)
def test_a_picture_in_two_splits_stays_in_the_one_to_evaluate_on(splits, keeper, data):
    shutil.rmtree(data / "annotations")
    for i, split in enumerate(splits):
        (data / split).mkdir(exist_ok=True)
        write_picture(data / split / f"own{i}.jpg")
        shutil.copyfile(data / "val" / "val1.jpg", data / split / "shared.jpg")
        images = [image_entry(1, "shared.jpg"), image_entry(2, f"own{i}.jpg")]
        boxes = [box_entry(j, j, 1, [1, 2, 3, 4]) for j in (1, 2)]
        classes = [{"id": 1, "name": "cat"}]
        tables = {"images": images, "annotations": boxes, "categories": classes}
        write_tables(data, split, tables)
    target, _ = copy_of(data)
    having = {split for split in splits if "shared.jpg" in boxes_of(target, split)}
    assert having == {keeper}


def test_class_names_become_the_most_frequent_spelling_in_all_splits(data):
    editing(lambda t: t["categories"][0].update(name="CAT"), "val")(data)
    target, _ = copy_of(data)
    for split in ("train", "val"):
        assert read_tables(target, split)["categories"] == [
            {"id": 1, "name": "cat"},
            {"id": 2, "name": "dog"},
        ]
    assert len(read_data(target, "val", ["cat", "dog"]).records) == 2


def test_splits_with_other_class_numbers_agree_in_the_copy(data):
    def swap(tables):
        tables["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]

    editing(swap, "val")(data)
    target, _ = copy_of(data)
    assert read_tables(target, "val")["categories"] == read_tables(target, "train")["categories"]
    names = read_data(data, "val").label_names
    old, new = read_data(data, "val"), read_data(target, "val", names)
    for before, after in zip(old.records, new.records, strict=True):
        assert torch.equal(before.labels, after.labels)


def test_images_without_boxes_that_share_an_id_get_ids_of_their_own(data):
    editing(give_two_files_one_id)(data)
    editing(lambda t: t.update(annotations=t["annotations"][2:]))(data)
    target, changes = copy_of(data)
    ids = {i["file_name"]: i["id"] for i in read_tables(target, "train")["images"]}
    assert ids == {"train1.jpg": 1, "train2.jpg": 4, "train3.jpg": 3}
    assert "image id 1 became 4" in changes


def test_images_with_ambiguous_boxes_are_left_out(data):
    editing(give_two_files_one_id)(data)
    target, changes = copy_of(data)
    assert set(boxes_of(target)) == {"train3.jpg"}
    assert any("train1.jpg and train2.jpg share the id 1" in text for text in changes)


def test_files_of_one_name_get_names_of_their_own(data):
    for folder in ("a", "b"):
        (data / "train" / folder).mkdir()
        write_picture(data / "train" / folder / "1.jpg")
    editing(lambda t: t["images"].extend([image_entry(8, "a/1.jpg"), image_entry(9, "b/1.jpg")]))(
        data
    )
    target, changes = copy_of(data)
    names = [image["file_name"] for image in read_tables(target, "train")["images"]]
    assert names[3:] == ["1.jpg", "1_2.jpg"]
    assert "file name became 1_2.jpg" in changes
    assert (target / "train" / "1_2.jpg").read_bytes() == (
        data / "train" / "b" / "1.jpg"
    ).read_bytes()


def test_a_file_name_that_is_not_utf8_is_replaced(data):
    name = os.fsdecode(b"caf\xe9.jpg")
    (data / "train" / "train1.jpg").rename(data / "train" / name)
    editing(lambda t: t["images"][0].update(file_name=name))(data)
    target, changes = copy_of(data)
    assert (target / "train" / "caf_.jpg").is_file()
    assert changes == ["file name became caf_.jpg"]
    assert r"caf\udce9.jpg" in (target / "changes.csv").read_text()
    assert len(read_data(target, "train").records) == 3


def test_voc_becomes_coco_and_a_joint_split_is_left_out(tmp_path):
    root = tmp_path / "voc"
    write_voc(root, "train", a=(1, 1, 30, 30), b=(5, 5, 70, 40))
    write_voc(root, "val", c=(1, 1, 30, 30))
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\nc")
    target, changes = copy_of(root)
    assert boxes_of(target) == {"a.jpg": [[0, 0, 30, 30]], "b.jpg": [[4, 4, 64, 40]]}
    assert [p.name for p in sorted((target / "annotations").iterdir())] == [
        "instances_train.json",
        "instances_val.json",
    ]
    assert "split left out: it is train and val together" in changes


def test_images_that_nobody_has_labelled_yet_are_copied(tmp_path):
    root = tmp_path / "yolo"
    (root / "images").mkdir(parents=True)
    write_picture(root / "images" / "a.jpg")
    (root / "data.yaml").write_text("train: images\nnames: [cat]")
    target, changes = copy_of(root)
    assert boxes_of(target) == {"a.jpg": []}
    assert changes == ["the images were taken: no label file of any of the 1 images"]


def test_only_the_checked_splits_are_copied(data):
    target = data.with_name("clean")
    write_clean_copy(check_data(data, ["val"]), target)
    assert json.loads((target / "annotations" / "instances_val.json").read_text())["images"]
    assert not (target / "train").exists()
