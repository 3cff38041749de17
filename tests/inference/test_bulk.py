import os
import re
import shutil
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image

from sepc_zoo.config import ConfigError
from sepc_zoo.data.images import ImageError, list_images
from sepc_zoo.inference.bulk import picture_path, predict_files
from sepc_zoo.inference.sources import FileList, find_files
from sepc_zoo.inference.tta import Views
from sepc_zoo.inference.video_writer import video_path


@pytest.fixture
def files(shapes, tmp_path):
    """Four images, the second in a size of its own."""
    files = list_images(shutil.copytree(shapes / "val", tmp_path / "images"))
    with Image.open(files[1]) as image:
        image.resize((64, 40)).save(files[1])
    return files


def listed(files):
    return FileList(files, files[0].parent)


def scores(rows):
    return [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("batch_size", "workers", "views"),
    [(1, 0, Views()), (3, 0, Views(flip=True, scales=(1.0, 1.5))), (3, 2, Views())],
)
def test_many_files_give_what_each_gives_alone(batch_size, workers, views, model, files, tmp_path):
    done = predict_files(
        model,
        listed(files),
        tmp_path / "out",
        0.5,
        batch_size=batch_size,
        workers=workers,
        views=views,
    )
    assert [result.position for result in done] == [0, 1, 2, 3]
    for i, (result, file) in enumerate(zip(done, files, strict=True), start=1):
        expected = model.predict(file, 0.5, views=views)
        assert len(expected) > 0
        assert result.text == expected.summary()
        assert {row["image_id"] for row in result.rows} == {i}
        assert scores(result.rows) == pytest.approx(expected.scores.tolist(), abs=1e-5)
        with Image.open(tmp_path / "out" / f"{file.stem}_boxes.jpg") as picture:
            assert (picture.height, picture.width) == Image.open(file).size[::-1]


def test_an_image_keeps_its_id_where_another_cannot_be_read(model, files, tmp_path):
    before = predict_files(model, listed(files), tmp_path / "out", 0.5, workers=0)
    files[1].write_bytes(b"no image")
    done = predict_files(model, listed(files), tmp_path / "out", 0.5, workers=0)
    assert done[1].rows is None
    assert str(files[1]) in done[1].problem
    assert [result.position for result in done] == [0, 1, 2, 3]
    assert scores(done[2].rows) == pytest.approx(scores(before[2].rows), abs=1e-5)


def test_no_two_images_share_a_picture(tmp_path):
    names = ["a.jpg", "a.JPG", "a.jpeg", "a.png", "a.b.png", "a_boxes.jpg", "a_boxes.png", "b.jpg"]
    names += ["a.dat", "example.com_photos_1", "example.com_photos_2"]
    paths = {picture_path(tmp_path, Path(name)) for name in (*names, "b/a.jpg", "b/c/a.jpg")}
    assert len(paths) == len(names) + 2


def test_an_error_after_a_batch_leaves_whole_pictures_only(model, files, tmp_path):
    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(
            model, listed(files), tmp_path / "out", 0.5, batch_size=1, workers=0, after_batch=stop
        )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{file.stem}_boxes.jpg" for file in files[:2]]
    for name in names:
        Image.open(tmp_path / "out" / name).load()


def test_a_thread_predicts_many_files(model, files, tmp_path):
    done = []
    thread = Thread(
        target=lambda: done.extend(
            predict_files(model, listed(files), tmp_path / "out", 0.5, workers=2)
        )
    )
    thread.start()
    thread.join()
    assert len(done) == 4


def test_pictures_that_cannot_be_written_cost_the_results_nothing(model, files, tmp_path):
    whole = predict_files(model, listed(files), tmp_path / "whole", 0.5, workers=0)
    long = files[1].rename(files[1].with_name("x" * 250 + ".jpg"))  # with _boxes it is too long
    files[1] = long
    done = predict_files(model, listed(files), tmp_path / "out", 0.5, workers=0)
    assert [bool(result.problem) for result in done] == [False, True, False, False]
    assert f"{long}: its picture cannot be written to" in done[1].problem
    assert "File name too long" in done[1].problem
    assert [result.rows for result in done] == [result.rows for result in whole]
    (tmp_path / "file").write_text("a file where the folder should be")
    done = predict_files(model, listed(files), tmp_path / "file", 0.5, workers=0)
    assert all("cannot be written" in result.problem and result.rows for result in done)


def test_pipes_devices_and_folders_with_names_of_images_cost_the_others_nothing(
    model, files, tmp_path
):
    folder = files[0].parent
    os.mkfifo(folder / "pipe.jpg")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    (folder / "gone.jpg").symlink_to("nowhere")
    images = find_files([str(folder)])
    done = predict_files(model, images, tmp_path / "out", 0.5, workers=0)
    problems = {images.name(result.position): result.problem for result in done if result.problem}
    assert problems.keys() == {"pipe.jpg", "device.png", "folder.jpg", "gone.jpg"}
    assert sum("is a folder, pipe or device, no file" in text for text in problems.values()) == 3
    assert sum(bool(result.rows) for result in done) == 4


@pytest.fixture
def tree(tmp_path):
    """Images in folders of two levels, among other files."""
    names = ["a.jpg", "note.txt", "b/a.jpg", "b/c/d.PNG", ".hidden/e.jpg", "[f]*.jpg"]
    for name in names:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("sources", "recursive", "expected"),
    [
        ([""], False, ["[f]*.jpg", "a.jpg"]),
        ([""], True, ["[f]*.jpg", "a.jpg", "b/a.jpg", "b/c/d.PNG"]),
        (["b"], True, ["a.jpg", "c/d.PNG"]),
        (["b/c", "a.jpg"], False, ["b/c/d.PNG", "a.jpg"]),
        (["b", "a.jpg", "b/a.jpg"], False, ["b/a.jpg", "a.jpg"]),
        (["*"], False, ["[f]*.jpg", "a.jpg", "b/a.jpg"]),
        (["**/*.jpg"], False, ["[f]*.jpg", "a.jpg", "b/a.jpg"]),
        (["[f]*.jpg"], False, ["[f]*.jpg"]),
    ],
)
def test_files_folders_and_patterns_are_found_once_and_named_from_their_common_folder(
    sources, recursive, expected, tree
):
    images = find_files([str(tree / source) for source in sources], recursive)
    assert [images.name(i) for i in range(len(images.files))] == expected


def test_results_inside_of_the_images_are_no_images(tree):
    (tree / "out").mkdir()
    (tree / "out" / "a_boxes.jpg").touch()
    found = find_files([str(tree)], True, tree / "out")
    assert len(found.files) == 4
    with pytest.raises(ConfigError, match="--output is the folder of the images"):
        find_files([str(tree)], True, tree)
    with pytest.raises(ConfigError, match="--output is the folder of the images"):
        find_files([str(found.files[0]), str(tree)], False, tree)


def test_files_that_are_named_may_have_their_results_beside_them(tree):
    sources = [str(tree / "a.jpg"), "rtsp://camera/1"]
    for order in (sources, sources[::-1]):
        assert len(find_files(order, False, tree).files) == 2


def test_videos_cameras_and_addresses_have_names_of_their_own(tree):
    (tree / "0").mkdir()
    (tree / "clip.MOV").touch()
    addresses = ["rtsp://me:secret@host:554/live", "https://host/a/b.jpg?token=secret"]
    addresses += ["https://host/c.jpg?id=1", "https://host/c.jpg?id=2"]
    found = find_files([str(tree), "7", "/dev/video3", *addresses])
    images, videos = found.split()
    assert [images.name(i) for i in range(len(images.files))] == [
        "[f]*.jpg",
        "a.jpg",
        "host_a_b.jpg",
        "4_host_c.jpg",
        "5_host_c.jpg",
    ]
    assert [videos.name(i) for i in range(len(videos.files))] == [
        "clip.MOV",
        "camera_7",
        "dev_video3",
        "host_554_live",
    ]


def test_no_two_videos_share_a_result(tmp_path):
    names = ["a.mp4", "a.mov", "a.mov.mp4", "a.MP4", "b/a.mp4", "host_554_live"]
    assert len({video_path(tmp_path, Path(name)) for name in names}) == len(names)


@pytest.mark.parametrize("source", ["missing.jpg", "*.gif", "empty"])
def test_a_source_without_images_is_named(source, tree):
    (tree / "empty").mkdir()
    with pytest.raises(ImageError, match=re.escape(str(tree / source))):
        find_files([str(tree / "a.jpg"), str(tree / source)])
