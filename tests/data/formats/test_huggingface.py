import json
import sys

import pytest
from data_files import problems_of, write_image

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.formats.huggingface import huggingface_splits

BOX = [1.5, 2.0, 10.0, 20.25]
CORNERS = [1.5, 2.0, 11.5, 22.25]


def objects(*categories, key="category", **more):
    return {"bbox": [BOX] * len(categories), key: list(categories), **more}


def row(name="a.png", *categories, **columns):
    return {"file_name": name, "objects": objects(*categories), **columns}


def write_metadata(folder, *rows, images=("a.png", "b.png"), text=None):
    for name in images:
        write_image(folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    lines = text if text is not None else "\n".join(map(json.dumps, rows))
    (folder / "metadata.jsonl").write_bytes(lines if isinstance(lines, bytes) else lines.encode())


# ----------------------------------------------------------------------------------- metadata


def test_a_folder_with_metadata_needs_no_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    write_metadata(tmp_path / "train", row("a.png", "dog"), row("b.png"))
    annotations = read_data(tmp_path, "train")
    assert [record.path.name for record in annotations.records] == ["a.png", "b.png"]
    assert annotations.records[0].boxes.tolist() == [CORNERS]
    assert annotations.records[0].area.tolist() == [202.5]
    assert len(annotations.records[1].boxes) == 0


@pytest.mark.parametrize("split", ["val", "valid"])
def test_val_finds_validation(split, tmp_path):
    write_metadata(tmp_path / "train", row("a.png", "dog"))
    write_metadata(tmp_path / "validation", row("b.png", "dog"))
    assert read_data(tmp_path, split).records[0].path.name == "b.png"


@pytest.mark.parametrize("folder", [".", "data", "images"])
def test_a_folder_without_splits_is_train(folder, tmp_path):
    write_metadata(tmp_path / folder, row("a.png", "dog"))
    assert sorted(huggingface_splits(tmp_path)) == ["train"]
    assert len(read_data(tmp_path, "train").records) == 1


def test_one_file_may_have_the_rows_of_all_splits(tmp_path):
    images = ["train/a.png", "test/b.png"]
    rows = [row("train/a.png", "dog"), row("test\\b.png", "cat")]
    write_metadata(tmp_path, *rows, images=images)
    assert sorted(huggingface_splits(tmp_path)) == ["test", "train"]
    (record,) = read_data(tmp_path, "test").records
    assert record.path == tmp_path / "test" / "b.png"


def test_categories_as_texts_name_the_same_classes_in_all_splits(tmp_path):
    write_metadata(tmp_path / "train", row("a.png", "dog", "owl"))
    write_metadata(tmp_path / "test", row("a.png", "cat", "dog"))
    train, test = (read_data(tmp_path, split) for split in ("train", "test"))
    assert train.label_names == test.label_names == ("cat", "dog", "owl")
    assert test.records[0].labels.tolist() == [0, 1]


def test_numbers_are_named_by_classes_txt(tmp_path):
    write_metadata(tmp_path / "train", row("a.png", 1, 0))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    annotations = read_data(tmp_path, "train")
    assert (annotations.label_names, annotations.category_ids) == (("cat", "dog"), (0, 1))
    assert annotations.records[0].labels.tolist() == [1, 0]


def test_numbers_without_names_become_names(tmp_path):
    write_metadata(tmp_path / "train", row("a.png", 7))
    write_metadata(tmp_path / "test", row("a.png", 3))
    annotations = read_data(tmp_path, "train")
    assert (annotations.label_names, annotations.category_ids) == (("3", "7"), (3, 7))
    assert annotations.records[0].labels.tolist() == [1]


@pytest.mark.parametrize(
    "value",
    [
        {"bbox": [BOX, BOX], "categories": ["dog", "cat"]},
        {"bbox": [BOX, BOX], "label": ["dog", "cat"], "area": None, "id": [1, 2]},
        [{"bbox": BOX, "category": "dog"}, {"bbox": BOX, "category": "cat"}],
    ],
)
def test_objects_may_be_written_in_many_ways(value, tmp_path):
    write_metadata(tmp_path / "train", {"file_name": "a.png", "objects": value})
    (record,) = read_data(tmp_path, "train").records
    assert record.boxes.tolist() == [CORNERS, CORNERS]
    assert record.labels.tolist() == [1, 0]


@pytest.mark.parametrize("value", [None, {}, [], {"bbox": [], "category": []}])
def test_an_image_may_have_no_objects(value, tmp_path):
    write_metadata(tmp_path / "train", {"file_name": "a.png", "objects": value})
    assert len(read_data(tmp_path, "train").records[0].boxes) == 0


def test_ids_sizes_areas_and_crowds_are_kept(tmp_path):
    known = objects("dog", "cat", area=[7.0, 8.0], iscrowd=[0, 1])
    entry = {"file_name": "a.png", "objects": known, "image_id": 99, "width": 64, "height": 48}
    write_metadata(tmp_path / "train", entry)
    (record,) = read_data(tmp_path, "train").records
    assert (record.image_id, record.size) == (99, (48, 64))
    assert record.area.tolist() == [7, 8]
    assert record.iscrowd.tolist() == [0, 1]


def test_metadata_may_be_csv_with_json_inside(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    cell = json.dumps(objects("dog")).replace('"', '""')
    text = f'\ufefffile_name,objects,image_id\r\na.png,"{cell}",0005\r\n'
    (tmp_path / "train" / "metadata.csv").write_text(text, encoding="utf-8", newline="")
    (record,) = read_data(tmp_path, "train").records
    assert (record.image_id, record.boxes.tolist()) == (5, [CORNERS])


def test_a_cell_too_long_for_csv_is_named_by_line(tmp_path):
    write_image(tmp_path / "train" / "a.png")
    text = "file_name,objects\na.png," + "1" * 200_000
    (tmp_path / "train" / "metadata.csv").write_text(text)
    (problem,) = problems_of(tmp_path)
    assert "metadata.csv:2: field larger than field limit" in problem


def test_byte_order_marks_windows_lines_and_empty_lines_are_ignored(tmp_path):
    line = json.dumps(row("a.png", "d\u2028g"), ensure_ascii=False)
    write_metadata(tmp_path / "train", text=f"\ufeff{line}\r\n\r\n")
    assert read_data(tmp_path, "train").label_names == ("d\u2028g",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "metadata.jsonl:2: not JSON"),
        ("[]", "metadata.jsonl:2: not a JSON object"),
        ('{"objects": {}}', "metadata.jsonl:2: has no 'file_name'"),
        ('{"file_name": "b.png"}', "metadata.jsonl:2: has no 'objects'"),
        (json.dumps(row("none.png")), "none.png: No such file"),
        (json.dumps(row("a.png")), "a.png is there twice"),
        (json.dumps(row("b.png", None)), "objects[0]: category None is neither"),
        (json.dumps(row("b.png", width=1, height=1)), "b.png: annotated as 1x1"),
        (json.dumps(row("b.png", image_id=1)), "the image_id 1 is there twice"),
        ('{"file_name": "b.png", "objects": "none"}', "'objects' has no lists"),
        (
            '{"file_name": "b.png", "objects": {"bbox": [], "category": [1]}}',
            "metadata.jsonl:2: the lists of 'objects' are not of one length",
        ),
        (
            '{"file_name": "b.png", "objects": {"bbox": [[1, 2, 3]], "category": ["dog"]}}',
            "metadata.jsonl:2: objects[0]: 'bbox' [1, 2, 3] is not four numbers",
        ),
        ('{"file_name": "b.png", "objects": [{"category": "dog"}]}', "objects[0]: has no 'bbox'"),
        (b'{"file_name": "\xe9.png"}', "metadata.jsonl:2: not UTF-8"),
    ],
)
def test_a_broken_row_is_named_with_its_line(text, says, tmp_path):
    first = json.dumps(row("a.png", "dog", image_id=1)).encode() + b"\n"
    write_metadata(
        tmp_path / "train", text=first + (text if isinstance(text, bytes) else text.encode())
    )
    (problem,) = problems_of(tmp_path, drop_bad_boxes=True)
    assert says in problem


def test_a_bad_box_is_named_and_can_be_dropped(tmp_path):
    value = {"bbox": [BOX, [5, 5, 0, 5]], "category": ["dog", "dog"]}
    write_metadata(tmp_path / "train", {"file_name": "a.png", "objects": value})
    (problem,) = problems_of(tmp_path)
    assert problem.startswith("train/metadata.jsonl:1: objects[1]: box")
    assert len(read_data(tmp_path, "train", drop_bad_boxes=True).records[0].boxes) == 1


def test_a_category_missing_in_classes_txt_is_a_problem(tmp_path):
    write_metadata(tmp_path / "train", row("a.png", 2))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (problem,) = problems_of(tmp_path)
    assert "category 2 is not among the 2 classes" in problem


# ------------------------------------------------------------------------------------- tables


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def make_table(datasets, tmp_path, *categories, label=None):
    """Two rows, the first with boxes of ``categories``."""
    path = tmp_path / "source" / "image.png"
    write_image(path)
    value = {"bytes": path.read_bytes(), "path": None}
    category = label or datasets.Value("int64")
    features = {
        "picture": datasets.Image(),
        "objects": {
            "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
            "category": datasets.List(category),
        },
    }
    rows = [{"picture": value, "objects": objects(*cats)} for cats in (categories, ())]
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    "name",
    ["{}-00000-of-00001.parquet", "data/{}.parquet", "{}/0000.parquet", "data[1]/{}.parquet"],
)
def test_parquet_files_are_found_by_split(name, split, datasets, tmp_path):
    for other, categories in (("train", [1]), ("test", [0, 0])):
        file = tmp_path / "set" / name.format(other)
        file.parent.mkdir(parents=True, exist_ok=True)
        label = datasets.ClassLabel(names=["cat", "dog"])
        make_table(datasets, tmp_path, *categories, label=label).to_parquet(file)
    annotations = read_data(tmp_path / "set", split)
    assert annotations.label_names == ("cat", "dog")
    assert annotations.records[0].labels.tolist() == {"train": [1], "test": [0, 0]}[split]
    assert annotations.records[0].boxes.tolist()[0] == CORNERS


def test_the_shards_of_a_split_are_read_in_order(datasets, tmp_path):
    (tmp_path / "set").mkdir()
    for i in (1, 0):
        table = make_table(datasets, tmp_path, *range(i + 1))
        table.to_parquet(tmp_path / "set" / f"train-0000{i}-of-00002.parquet")
    records = read_data(tmp_path / "set", "train").records
    assert [len(record.boxes) for record in records] == [1, 0, 2, 0]
    assert [record.image_id for record in records] == [1, 2, 3, 4]


def test_a_saved_data_set_without_splits_is_train(datasets, tmp_path):
    make_table(datasets, tmp_path, 0).save_to_disk(tmp_path / "set")
    assert sorted(huggingface_splits(tmp_path / "set")) == ["train"]
    assert len(read_data(tmp_path / "set", "train").records) == 2


def test_numbers_of_all_splits_are_the_classes_of_a_table_without_names(datasets, tmp_path):
    tables = {"train": make_table(datasets, tmp_path, 5), "test": make_table(datasets, tmp_path, 2)}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "set")
    assert read_data(tmp_path / "set", "train").label_names == ("2", "5")
    (tmp_path / "set" / "classes.txt").write_text("\n".join("abcdef"))
    annotations = read_data(tmp_path / "set", "train")
    assert annotations.label_names[annotations.records[0].labels[0]] == "f"


def test_images_inside_a_table_are_written_once_to_the_cache(datasets, tmp_path):
    make_table(datasets, tmp_path, 0).save_to_disk(tmp_path / "set")
    first = read_data(tmp_path / "set", "train").records[0].path
    assert first.is_relative_to(tmp_path / "cache")
    assert first.read_bytes() == (tmp_path / "source" / "image.png").read_bytes()
    written = first.stat().st_mtime_ns
    assert read_data(tmp_path / "set", "train").records[0].path == first
    assert first.stat().st_mtime_ns == written


def test_images_beside_a_table_are_not_copied(datasets, tmp_path):
    write_image(tmp_path / "set" / "pictures" / "a.png")
    table = datasets.Dataset.from_list([{"image": "pictures/a.png", "objects": objects(0)}])
    table.to_parquet(tmp_path / "set" / "train.parquet")
    (record,) = read_data(tmp_path / "set", "train").records
    assert record.path == tmp_path / "set" / "pictures" / "a.png"
    assert record.boxes.tolist() == [CORNERS]


def test_a_broken_row_of_a_table_is_named(datasets, tmp_path):
    table = make_table(datasets, tmp_path, -1, label=datasets.ClassLabel(names=["cat"]))
    table.save_to_disk(tmp_path / "set")
    (problem,) = problems_of(tmp_path / "set")
    assert problem.startswith("train: row 0: objects[0]: category -1")


def test_a_table_of_another_task_is_refused_with_its_columns(datasets, tmp_path):
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "set" / "train.parquet")
    (problem,) = problems_of(tmp_path / "set")
    assert "no columns image and objects, but text" in problem


@pytest.mark.usefixtures("datasets")
def test_a_damaged_parquet_file_is_an_error_that_names_the_data_set(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nonsense")
    (problem,) = problems_of(tmp_path)
    assert str(tmp_path) in problem


def test_without_the_library_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train.parquet").touch()
    (problem,) = problems_of(tmp_path)
    assert 'pip install "sepc_zoo[datasets]"' in problem


# ---------------------------------------------------------------------------------------- hub


def test_a_data_set_of_the_hub_is_loaded_by_name_and_revision(datasets, tmp_path, monkeypatch):
    asked = []

    def load_dataset(repo_id, revision=None):
        asked.append((repo_id, revision))
        return datasets.DatasetDict(train=make_table(datasets, tmp_path, 0, 1))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    annotations = read_data("hf-hub:someone/cells@v2", "train")
    assert set(asked) == {("someone/cells", "v2")}
    assert annotations.records[0].labels.tolist() == [0, 1]


def test_an_unreachable_hub_is_an_error_that_says_what_to_do(datasets, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/cells' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hf-hub:someone/cells: Couldn't reach") as caught:
        read_data("hf-hub:someone/cells", "train")
    assert "hf auth login" in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)
