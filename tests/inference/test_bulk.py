import shutil
from threading import Thread

import pytest
from PIL import Image

from sepc_zoo.data.images import list_images
from sepc_zoo.inference.bulk import picture_path, predict_files
from sepc_zoo.inference.tta import Views


@pytest.fixture
def files(shapes, tmp_path):
    """Four images, the second in a size of its own."""
    files = list_images(shutil.copytree(shapes / "val", tmp_path / "images"))
    with Image.open(files[1]) as image:
        image.resize((64, 40)).save(files[1])
    return files


def scores(rows):
    return [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("batch_size", "workers", "views"),
    [(1, 0, Views()), (3, 0, Views(flip=True, scales=(1.0, 1.5))), (3, 2, Views())],
)
def test_many_files_give_what_each_gives_alone(batch_size, workers, views, model, files, tmp_path):
    done = predict_files(
        model, files, tmp_path / "out", 0.5, batch_size=batch_size, workers=workers, views=views
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
    before = predict_files(model, files, tmp_path / "out", 0.5, workers=0)
    files[1].write_bytes(b"no image")
    done = predict_files(model, files, tmp_path / "out", 0.5, workers=0)
    assert done[1].rows is None
    assert str(files[1]) in done[1].text
    assert [result.position for result in done] == [0, 1, 2, 3]
    assert scores(done[2].rows) == pytest.approx(scores(before[2].rows), abs=1e-5)


def test_no_two_images_share_a_picture(tmp_path):
    names = ["a.jpg", "a.JPG", "a.jpeg", "a.png", "a.b.png", "a_boxes.jpg", "a_boxes.png", "b.jpg"]
    paths = {picture_path(tmp_path, tmp_path / name) for name in names}
    assert len(paths) == len(names)


def test_an_error_after_a_batch_leaves_whole_pictures_only(model, files, tmp_path):
    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(
            model, files, tmp_path / "out", 0.5, batch_size=1, workers=0, after_batch=stop
        )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"{file.stem}_boxes.jpg" for file in files[:2]]
    for name in names:
        Image.open(tmp_path / "out" / name).load()


def test_a_thread_predicts_many_files(model, files, tmp_path):
    done = []
    thread = Thread(
        target=lambda: done.extend(predict_files(model, files, tmp_path / "out", 0.5, workers=2))
    )
    thread.start()
    thread.join()
    assert len(done) == 4


def test_a_picture_that_cannot_be_written_is_an_error(model, files, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="out"):
        predict_files(model, files, tmp_path / "out", 0.5, workers=0)
