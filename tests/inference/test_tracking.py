"""Tracks: objects keep their numbers from frame to frame."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
from videos import make_video

from sepc_zoo.inference.predictor import stream
from sepc_zoo.inference.tracking import Tracker, TrackError

pytest.importorskip("trackers", reason='tracks need trackers: pip install "sepc_zoo[track]"')


def frame(*objects):
    """What a model finds: (x, score) of boxes of 20 x 20 pixels, by falling score."""
    objects = sorted(objects, key=lambda one: -one[1])
    boxes = torch.tensor([[x, 10, x + 20, 30] for x, _ in objects], dtype=torch.float32)
    scores = torch.tensor([score for _, score in objects])
    labels = torch.zeros(len(objects), dtype=torch.int64)
    return {"boxes": boxes.reshape(-1, 4), "scores": scores, "labels": labels}


# Two objects move apart; the scores of the second fall below the threshold for a while.
FRAMES = [frame((10 + 2 * i, 0.9), (60 + i, 0.2 if i in (4, 5) else 0.8)) for i in range(10)]


def ids_by_position(detections, ids):
    return {round(float(box[0])): int(i) for box, i in zip(detections["boxes"], ids, strict=True)}


def test_an_object_keeps_its_number_also_where_its_score_is_low_for_a_while():
    tracker = Tracker(0.5)
    numbers = [ids_by_position(one, tracker.update(one, i / 10)) for i, one in enumerate(FRAMES)]
    assert set(numbers[0].values()) == {-1}
    first = {seen[10 + 2 * i] for i, seen in enumerate(numbers) if i > 1}
    second = {seen[60 + i] for i, seen in enumerate(numbers) if i > 1}
    assert len(first) == len(second) == 1
    assert first != second
    assert -1 not in first | second


def test_frames_without_times_and_without_objects_are_fine():
    tracker = Tracker(0.5)
    for one in (frame(), *FRAMES[:3], frame(), *FRAMES[3:]):
        ids = tracker.update(one, None)
        assert ids.shape == one["scores"].shape
        assert ids.dtype == torch.int64
    assert (ids >= 0).all()


@pytest.fixture
def detector(model):
    """Finds the objects of the next frame, whatever the image is."""
    coming = iter(FRAMES * 3)
    return SimpleNamespace(
        config=model.config,
        detect=lambda images: [{k: v.clone() for k, v in next(coming).items()} for _ in images],
    )


def test_tracks_change_no_detection_and_begin_anew_with_each_video(detector, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", size=(64, 128))
    plain = list(stream(detector, clip, 0.5))
    found = list(stream(detector, [clip, clip], 0.5, batch_size=3, track=True))
    assert [len(one) for one in found] == [len(one) for one in plain] * 2
    for one, other in zip(found, plain * 2, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert one.track_ids.shape == one.scores.shape
    numbers = [sorted(one.track_ids.tolist()) for one in found]
    assert numbers[0] == numbers[10] == [-1, -1]
    assert numbers[9] == numbers[19]


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(TrackError, match=re.escape('pip install "sepc_zoo[track]"')):
        stream(model, "clip.mp4", track=True)
