"""`sepc-zoo predict` on videos and addresses."""

import json
import os
import signal
import sys
import time

import pytest
import torch
from commands import assert_refused, call
from video_server import VideoServer
from videos import av, cut, damage, make_video, read_video, sound_of

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.factory import load_model
from sepc_zoo.inference import video
from sepc_zoo.inference.video_writer import VideoWriter


@pytest.fixture(scope="session")
def few(model, tmp_path_factory):
    """A model with few detections, so that little is drawn."""
    detector = load_model(model, postprocess={"max_detections": 3})
    return save_model(detector, tmp_path_factory.mktemp("models") / "few")


@pytest.fixture
def predict(few, tmp_path):
    def call_predict(*arguments):
        flags = ("--model", few, "--output", tmp_path / "out", "--device", "cpu", "--workers", 0)
        return call("predict", *arguments, *flags)

    return call_predict


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_video_gives_one_with_boxes_and_sound_and_a_line_for_each_frame(
    predict, few, tmp_path, capsys
):
    times = [0, 10, 150, 160, 400, 500]
    clip = make_video(tmp_path / "clip.mp4", frames=6, times=times, sound="aac")
    assert predict(clip, "--batch-size", 4) == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["clip_boxes.jsonl", "clip_boxes.mp4"]
    before, after = read_video(clip), read_video(out / "clip_boxes.mp4")
    assert [round(seconds * 1000) for seconds, _ in after] == times
    assert sound_of(out / "clip_boxes.mp4") == sound_of(clip)
    assert all((old != new).any() for (_, old), (_, new) in zip(before, after, strict=True))
    with av.open(str(out / "clip_boxes.mp4")) as written:
        assert written.streams.video[0].codec_context.name == "h264"
    lines = lines_of(out / "clip_boxes.jsonl")
    assert [(line["frame"], line["time"]) for line in lines] == [
        (i, milliseconds / 1000) for i, milliseconds in enumerate(times)
    ]
    found = list(load_model(few).stream(clip))
    for line, detections in zip(lines, found, strict=True):
        rows = line["detections"]
        assert [row["name"] for row in rows] == [one.name for one in detections]
        assert rows[0]["box"] == pytest.approx(detections[0].box, abs=0.02)
        assert rows[0].keys() == {"box", "score", "label", "name"}
    said = capsys.readouterr().out
    assert "clip_boxes.mp4: 6 frames of " in said
    assert "no score" not in said


@pytest.mark.parametrize("bias", [0.0, -9.0])
def test_a_video_without_a_box_is_told_with_the_highest_score(bias, few, tmp_path, capsys):
    unsure = load_model(few)
    torch.nn.init.constant_(unsure.head.cls.bias, bias)
    torch.nn.init.normal_(unsure.head.cls.weight, std=1e-3)
    clips = [make_video(tmp_path / f"{name}.mp4", frames=3) for name in "ab"]
    flags = ("--model", save_model(unsure, tmp_path / "unsure"), "--output", tmp_path / "out")
    assert call("predict", *clips, *flags, "--score-threshold", 0.9, "--device", "cpu") == 0
    scores = [s for found in unsure.stream(clips[0], 0.0) for s in found.scores.tolist()]
    reason = "none reaches the model's own limit of 0.05 (postprocess.score_threshold)"
    if bias == 0:
        reason = f"the highest is {max(scores):.3f}: lower --score-threshold"
    assert capsys.readouterr().out.count(f"no score reaches 0.9; {reason}\n") == 2
    for line in lines_of(tmp_path / "out" / "a_boxes.jsonl"):
        assert line["detections"] == []


def test_a_folder_may_mix_images_and_videos(predict, images, tmp_path):
    pytest.importorskip("trackers")
    make_video(images / "clip.mkv", frames=5)
    assert predict(images, "--every", 2, "--track") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    videos = {"clip.mkv_boxes.jsonl", "clip.mkv_boxes.mp4"}
    assert names == {"a_boxes.jpg", "b_boxes.jpg", "detections.json"} | videos
    content = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["file_name"] for row in content["images"]] == ["a.jpg", "b.jpg"]
    lines = lines_of(tmp_path / "out" / "clip.mkv_boxes.jsonl")
    assert [line["frame"] for line in lines] == [0, 2, 4]
    assert "track_id" in lines[0]["detections"][0]
    assert len(read_video(tmp_path / "out" / "clip.mkv_boxes.mp4")) == 3


def test_what_a_broken_video_has_is_kept_and_the_others_are_done(predict, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    cut(make_video(folder / "cut.mp4", movflags="faststart"), 0.7)
    damage(make_video(folder / "damaged.mp4", frames=30))
    (folder / "none.mp4").write_bytes(b"no video")
    make_video(folder / "whole.mp4", frames=3)
    assert predict(folder, "--every", 3) == 1
    assert_refused(
        capsys,
        f"not done: {folder / 'cut.mp4'}: ends after 0.",
        f"not done: {folder / 'damaged.mp4'}: ",
        f"not done: {folder / 'none.mp4'}: Invalid data",
    )
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    kept = ("cut", "damaged", "whole")
    assert names == [f"{name}_boxes.{suffix}" for name in kept for suffix in ("jsonl", "mp4")]
    for name in kept:
        frames = read_video(tmp_path / "out" / f"{name}_boxes.mp4")
        assert len(frames) == len(lines_of(tmp_path / "out" / f"{name}_boxes.jsonl")) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_a_playable_video(number, predict, tmp_path, monkeypatch, capsys):
    write = VideoWriter.write

    def write_with_signal(*arguments):
        write(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(VideoWriter, "write", write_with_signal)
    clips = [make_video(tmp_path / f"{name}.mp4", frames=20) for name in "ab"]
    assert predict(*clips, "--batch-size", 1) == 128 + number
    assert_refused(capsys, "stopped; videos made until then")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a_boxes.jsonl", "a_boxes.mp4"]
    assert 1 <= len(read_video(tmp_path / "out" / "a_boxes.mp4")) < 20


def test_addresses_of_images_and_videos_are_read_and_a_stalled_one_ends(
    predict, images, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(video, "TIMEOUT", 1.0)
    clip = make_video(tmp_path / "clip.ts", frames=5)
    picture = (images / "a.jpg").read_bytes()
    contents = {"/a.jpg": ("image/jpeg", picture), "/clip.ts": ("video/mp2t", clip.read_bytes())}
    with VideoServer(contents) as server:
        url = server.url.replace("//", "//me:secret@")
        began = time.monotonic()
        assert predict(f"{server.url}/a.jpg", f"{url}/stall/clip.ts", "--every", 2) == 1
        assert time.monotonic() - began < 20
    said = "".join(capsys.readouterr())
    assert "clip.ts: nothing came for 1 seconds" in said
    assert "secret" not in said
    (flat,) = (path for path in (tmp_path / "out").glob("*_stall_clip.ts_boxes.mp4"))
    assert len(read_video(flat)) == 3
    assert len([*(tmp_path / "out").glob("*_a_boxes.jpg")]) == 1


@pytest.mark.parametrize(("library", "extra"), [("av", "video"), ("trackers", "track")])
def test_missing_libraries_are_named_before_the_work(
    library, extra, predict, images, tmp_path, monkeypatch, capsys
):
    make_video(images / "clip.mp4", frames=2)
    monkeypatch.setitem(sys.modules, library, None)
    assert predict(images, "--track") == 2
    assert_refused(capsys, f'pip install "sepc_zoo[{extra}]"')
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_is_told_and_leaves_no_half_video(predict, tmp_path, capsys):
    (tmp_path / "out" / "clip_boxes.mp4").mkdir(parents=True)  # stands for what cannot be written
    assert predict(make_video(tmp_path / "clip.mp4", frames=2)) == 1
    assert_refused(capsys, "clip_boxes.mp4: cannot be written")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip_boxes.mp4"]
