import pytest
from data_files import problems_of
from PIL import Image

from sepc_zoo.data import read_data
from sepc_zoo.data.formats.voc import voc_splits

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
    <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>
    <bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
    </object>"""
SIZE = "<size><width>64</width><height>48</height><depth>3</depth></size>"


def an_object(name="cat", box=(11, 21, 20, 40), difficult=0):
    return OBJECT.format(name=name, box=box, difficult=difficult)


def write_image(root, stem, *objects, suffix=".png", filename="", size=SIZE):
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48)).save(root / "JPEGImages" / f"{stem}{suffix}")
    text = f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)


def write_split(root, split, *stems):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("\n".join(stems) + "\n")


def test_boxes_count_from_one_and_include_their_last_pixel(tmp_path):
    write_image(tmp_path, "a", an_object(box=(1, 1, 64, 48)), an_object(box=(5, 6, 5, 6.5)))
    write_split(tmp_path, "train", "a")
    record = read_data(tmp_path, "train").records[0]
    assert record.boxes.tolist() == [[0, 0, 64, 48], [4, 5, 5, 6.5]]
    assert record.area.tolist() == [64 * 48, 1.5]


def test_classes_are_those_of_all_splits(tmp_path):
    write_image(tmp_path, "a", an_object("dog"))
    write_image(tmp_path, "b", an_object("cat"))
    write_split(tmp_path, "train", "a")
    write_split(tmp_path, "val", "b")
    train, val = read_data(tmp_path, "train"), read_data(tmp_path, "val")
    assert train.label_names == val.label_names == ("cat", "dog")
    assert train.category_ids == (1, 2)
    assert train.records[0].labels.tolist() == [1]


def test_a_class_that_is_not_among_the_names_is_a_problem(tmp_path):
    write_image(tmp_path, "a", an_object("dog"))
    write_split(tmp_path, "train", "a")
    assert "category 'dog' is not among" in problems_of(tmp_path, label_names=["owl"])[0]


def test_difficult_objects_become_crowds(tmp_path):
    write_image(tmp_path, "a", an_object(difficult=1), an_object())
    write_split(tmp_path, "train", "a")
    assert read_data(tmp_path, "train").records[0].iscrowd.tolist() == [1, 0]


def test_ids_are_positions_in_the_split_file(tmp_path):
    for stem in "abc":
        write_image(tmp_path, stem)
    write_split(tmp_path, "train", "c", "", "a")
    records = read_data(tmp_path, "train").records
    assert [(r.image_id, r.path.name) for r in records] == [(1, "c.png"), (2, "a.png")]


@pytest.mark.parametrize("filename", ["a.v2", "a.v2.png", "elsewhere.jpg", ""])
def test_the_image_is_found_by_the_stem_of_the_annotation(filename, tmp_path):
    write_image(tmp_path, "a.v2", filename=filename)
    write_split(tmp_path, "train", "a.v2")
    assert read_data(tmp_path, "train").records[0].path == tmp_path / "JPEGImages" / "a.v2.png"


def test_the_file_name_chooses_among_images_of_one_stem(tmp_path):
    write_image(tmp_path, "a", suffix=".bmp")
    write_image(tmp_path, "a", suffix=".png", filename="a.png")
    write_split(tmp_path, "train", "a")
    assert read_data(tmp_path, "train").records[0].path.name == "a.png"


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_without_an_annotated_size_the_file_decides(size, tmp_path):
    write_image(tmp_path, "a", size=size)
    write_split(tmp_path, "train", "a")
    assert read_data(tmp_path, "train").records[0].size == (48, 64)


def test_a_split_file_of_windows_is_read(tmp_path):
    write_image(tmp_path, "a")
    write_split(tmp_path, "train")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfa\r\n\r\n")
    assert len(read_data(tmp_path, "train").records) == 1


@pytest.mark.parametrize("label_names", [None, ["cat"]])
def test_every_broken_file_and_entry_is_listed_at_once(label_names, tmp_path):
    write_image(tmp_path, "good", an_object())
    write_image(tmp_path, "malformed")
    (tmp_path / "Annotations" / "malformed.xml").write_text("<annotation>")
    write_image(tmp_path, "no_image")
    (tmp_path / "JPEGImages" / "no_image.png").unlink()
    write_image(tmp_path, "words", an_object(box=(1, "two", 3, 4)), an_object(box=(1, 2, 3, "")))
    write_image(tmp_path, "odd_size", size="<size><width>w</width><height>1</height></size>")
    write_image(tmp_path, "bad_box", an_object(box=(66, 5, 70, 9)), an_object(box=(70, 1, 80, 9)))
    write_image(tmp_path, "other_size", size=SIZE.replace("64", "65"))
    stems = ["good", "malformed", "no_image", "words", "odd_size", "bad_box", "other_size"]
    write_split(tmp_path, "train", *stems, "no_xml", "good")
    expected = [
        "train.txt: good is there twice",
        "malformed.xml: not well-formed XML",
        "no_xml.xml: No such file",
        "no_image.xml: no image of this name",
        "words.xml: object 1: bndbox",
        "words.xml: object 2: bndbox",
        "odd_size.xml: size",
        "bad_box.xml: object 1: box",
        "bad_box.xml: object 2: box",
        "other_size.png: annotated as 65x48",
    ]
    problems = problems_of(tmp_path, label_names=label_names)
    assert len(problems) == len(expected)
    for text in expected:
        assert sum(text in problem for problem in problems) == 1, text


def test_lists_for_single_classes_are_no_splits(tmp_path):
    write_split(tmp_path, "train", "a")
    write_split(tmp_path, "cat_train", "a -1")
    write_split(tmp_path, "night_train", "a")
    write_split(tmp_path, "cat_2012", "a  1")  # there is no 2012.txt
    assert sorted(voc_splits(tmp_path)) == ["cat_2012", "night_train", "train"]


def test_real_voc_is_read_completely(shared_data):
    splits = [read_data(shared_data / "bccd", split) for split in ("train", "val", "test")]
    assert [len(split.records) for split in splits] == [205, 87, 72]
    assert {split.label_names for split in splits} == {("Platelets", "RBC", "WBC")}
    assert sum(len(record.boxes) for split in splits for record in split.records) == 4888
