"""Videos, cameras and streams: read frame by frame, and detected by `model.stream`."""

import os
import re
import socket
import sys
import time
import weakref
from fractions import Fraction
from itertools import pairwise
from multiprocessing import get_all_start_methods, get_context
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from video_server import VideoServer
from videos import RATE, cut, damage, make_video, read_video, sound_of

from sepc_zoo.data.images import ImageError
from sepc_zoo.errors import UserError
from sepc_zoo.inference import video as module
from sepc_zoo.inference.drawing import draw_boxes
from sepc_zoo.inference.predictor import detect, predict, stream
from sepc_zoo.inference.preprocess import without_password
from sepc_zoo.inference.video import Video, VideoError, is_video
from sepc_zoo.inference.video_writer import VideoWriter


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4")


@pytest.fixture
def server(clip, tmp_path, image):
    image.save(tmp_path / "image.png")
    picture = (tmp_path / "image.png").read_bytes()
    stream = make_video(tmp_path / "clip.ts").read_bytes()
    contents = {
        "/clip.mp4": ("video/mp4", clip.read_bytes()),
        "/clip.ts": ("video/mp2t", stream),
        "/video?id=1": ("video/mp4", clip.read_bytes()),
        "/image?id=1": ("image/png", picture),
    }
    with VideoServer(contents) as server:
        yield server


def levels(images):
    return [round((image.pixels.float().mean().item() + 15 - 40) / 15) for image in images]


# Reading


@pytest.mark.parametrize("every", [1, 3])
def test_every_nth_frame_comes_in_order_with_its_time(every, clip):
    with Video(clip, every=every) as video:
        frames = list(video)
    expected = [*range(0, 10, every)]
    assert [frame.frame for frame in frames] == expected == levels(frames)
    assert [frame.time for frame in frames] == [Fraction(i, RATE) for i in expected]
    assert {(frame.pixels.shape, frame.pixels.dtype) for frame in frames} == {
        ((3, 64, 64), torch.uint8)
    }
    assert (video.num_frames, video.damaged, video.faults) == (10, 0, [])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_containers_of_many_kinds_are_read_to_their_end(suffix, tmp_path):
    kind = {"codec": "mpeg4"} if suffix == ".avi" else {"sound": "aac"}
    with Video(make_video(tmp_path / f"clip{suffix}", **kind)) as video:
        frames = list(video)
    assert levels(frames) == [*range(10)]
    assert np.diff([float(frame.time) for frame in frames]) == pytest.approx(1 / RATE, abs=2e-3)
    assert (video.damaged, video.damage, video.faults) == (0, "", [])


def test_times_of_a_variable_frame_rate_are_kept(tmp_path):
    times = [0, 10, 150, 160, 400]
    with Video(make_video(tmp_path / "clip.mp4", frames=5, times=times)) as video:
        assert [round(frame.time * 1000) for frame in video] == times


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_frames_are_upright(degrees, turns, tmp_path):
    """A phone stores its frames lying, and tells how far to turn them."""
    with Video(make_video(tmp_path / "a.mp4", frames=2, size=(32, 64), rotation=degrees)) as video:
        frame = next(iter(video)).pixels
    _, lying = read_video(tmp_path / "a.mp4")[0]
    assert torch.equal(frame, torch.from_numpy(np.rot90(lying, turns).copy()).permute(2, 0, 1))


def test_a_model_of_one_channel_gets_grey_frames_and_one_of_four_none(clip):
    with Video(clip, channels=1) as grey, Video(clip) as color:
        one, three = next(iter(grey)).pixels, next(iter(color)).pixels
    assert one.shape == (1, 64, 64)
    assert (one.float() - three.float().mean(dim=0)).abs().max() < 3
    with pytest.raises(VideoError, match="takes 4 channels"):
        Video(clip, channels=4)


def test_times_go_on_where_the_clock_is_set_anew(clip):
    """As cameras do when they get the time from the network."""
    ticks = [0, 1, 2, 2, 3, 1003, 1004, 4, 5]
    with Video(clip) as video:
        video.time_base, video.start, times = Fraction(1, RATE), None, [None]
        for tick in ticks:
            times.append(video._time_of(SimpleNamespace(pts=tick), times[-1]))
    steps = [round(float(b - a) * RATE, 3) for a, b in pairwise(times[1:])]
    assert steps == [1, 1, 1, 1, 999, 1, 1, 1]


# What is broken


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cut_file_gives_what_is_there_and_says_that_it_ends_early(suffix, tmp_path):
    path = make_video(tmp_path / f"clip{suffix}", movflags="faststart")
    with Video(cut(path, 0.7)) as video:
        frames = list(video)
    assert levels(frames) == [*range(len(frames))]
    assert 3 <= len(frames) < 10
    assert re.search(r"ends after 0\.\d of 1\.0 seconds", *video.faults)


def test_damaged_frames_are_counted_and_the_others_read(tmp_path):
    with Video(damage(make_video(tmp_path / "clip.mp4", frames=30))) as video:
        frames = list(video)
    assert 0 < video.damaged < 30
    assert 15 < len(frames) <= 30
    assert f"clip.mp4: {video.damaged} frames could not be decoded" in video.damage


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.mp4", "no such file"),
        ("folder.mp4", "no such file"),
        ("pipe.mp4", "no such file"),
        ("text.mp4", "Invalid data"),
        ("sound.wav", "has no video stream"),
        ("/dev/video77", "No such file" if sys.platform == "linux" else "video77"),
    ],
)
def test_what_is_no_video_is_named(name, reason, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "text.mp4").write_text("no video")
    header = b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0"
    (tmp_path / "sound.wav").write_bytes(header + b"data\x08\0\0\0" + bytes(8))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(VideoError, match=f"{name}: .*{reason}"):
        Video(tmp_path / name)  # an absolute path stays as it is


def test_without_pyav_the_error_says_how_to_install_it(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=re.escape('pip install "sepc_zoo[video]"')):
        Video(clip)


# Addresses


def test_a_video_behind_an_address_is_read_and_the_type_decides_where_no_suffix_does(server):
    assert is_video(f"{server.url}/video?id=1")
    assert not is_video(f"{server.url}/image?id=1")
    with Video(f"{server.url}/clip.mp4") as video:
        assert levels(video) == [*range(10)]


def test_an_address_that_stalls_ends_in_bounded_time_after_what_came(server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    began = time.monotonic()
    with Video(f"{server.url}/stall/clip.ts") as video:
        assert len(list(video)) >= 9
    assert time.monotonic() - began < 5
    assert "clip.ts: nothing came for 1 seconds" in video.faults[0]


def test_an_address_without_an_answer_is_named_without_its_password():
    with pytest.raises(VideoError, match=r"^rtsp://127\.0\.0\.1:1/live: Connection refused$"):
        Video("rtsp://me:secret@127.0.0.1:1/live")
    assert without_password("rtsp://me:p@ss@host/a@b?t=/x@y") == "rtsp://host/a@b"
    assert without_password("b@c?.jpg") == "b@c?.jpg"


def test_frames_of_a_live_stream_are_left_out_where_reading_is_slower(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LAG", 0.2)
    listener = socket.create_server(("127.0.0.1", 0))

    def send():
        connection, _ = listener.accept()
        connection.sendall(make_video(tmp_path / "clip.ts").read_bytes())
        connection.close()

    Thread(target=send, daemon=True).start()
    seen = []
    with listener, Video(f"tcp://127.0.0.1:{listener.getsockname()[1]}") as video:
        for frame in video:
            seen.append(frame.frame)
            time.sleep(0.3)
    assert seen[0] == 0
    assert video.late == 10 - len(seen) > 0


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        *((s, True) for s in (0, "/dev/video0", "a.MP4", "rtsp://host/a.jpg", "http://host/a.m4v")),
        *((s, False) for s in ("a.jpg", "folder", "http://host/a.jpg?x=1.mp4", b"", ["a.mp4"])),
    ],
)
def test_videos_are_told_from_images(source, expected):
    assert is_video(source) == expected


# Writing


def write(path, video, pictures):
    with VideoWriter(path, video) as writer:
        for image in pictures:
            writer.write(draw_boxes(image.pixels, torch.zeros(0, 4), [], []), image.time)


def test_a_written_video_has_the_pictures_times_and_sound_of_its_source(tmp_path):
    times = [0, 10, 150, 160, 400]
    source = make_video(tmp_path / "a.mp4", frames=5, times=times, sound="aac")
    with Video(source, keep_sound="aac") as video:
        write(tmp_path / "b.mp4", video, video)
    before, after = read_video(source), read_video(tmp_path / "b.mp4")
    assert [seconds for seconds, _ in after] == pytest.approx([seconds for seconds, _ in before])
    for (_, old), (_, new) in zip(before, after, strict=True):
        assert np.abs(old.mean(axis=(0, 1)) - new.mean(axis=(0, 1))).max() < 3
    assert sound_of(tmp_path / "b.mp4") == sound_of(source)
    assert video.faults == []


def test_frames_of_odd_and_of_other_sizes_fit_the_video(tmp_path):
    small, large = (make_video(tmp_path / f"{n}.mp4", 3, (n, n)) for n in (50, 90))
    with Video(small) as video, Video(large) as other:
        images = [image._replace(pixels=image.pixels[:, :49, :47]) for image in video]
        later = [image._replace(time=image.time + 1) for image in other]
        write(tmp_path / "out.mp4", video, [*images, *later])
    assert {pixels.shape for _, pixels in read_video(tmp_path / "out.mp4")} == {(48, 46, 3)}
    assert len(read_video(tmp_path / "out.mp4")) == 6


def test_sound_that_mp4_cannot_hold_is_left_out_and_told(tmp_path):
    source = make_video(tmp_path / "a.avi", codec="mpeg4", sound="pcm_mulaw")
    with Video(source, keep_sound="aac") as video:
        write(tmp_path / "b.mp4", video, video)
    assert "a.avi: sound of type pcm_mulaw cannot be copied into mp4" in video.faults[0]
    assert len(read_video(tmp_path / "b.mp4")) == 10


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="this system has no fork")
def test_a_process_can_be_forked_by_another_thread_after_a_video(tmp_path):
    """As by a run that trains in a thread; its child clears what PyAV keeps for this one."""
    with Video(make_video(tmp_path / "a.mp4", frames=5)) as video:
        write(tmp_path / "b.mp4", video, video)
    process = get_context("fork").Process(target=os.getpid)
    thread = Thread(target=process.start)
    thread.start()
    thread.join()
    process.join(timeout=60)
    has_ended = process.exitcode == 0
    process.kill()
    assert has_ended


# model.stream


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_video_gives_what_each_of_its_frames_gives(batch_size, model, clip):
    found = list(model.stream(clip, 0.5, batch_size=batch_size, every=2))
    images = [pixels for _, pixels in read_video(clip)[::2]]
    assert len(found) == len(images) == 5
    for one, image in zip(found, images, strict=True):
        expected = model.predict(image, 0.5)
        assert len(one) > 0
        torch.testing.assert_close(one.scores, expected.scores, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.image, torch.from_numpy(image).permute(2, 0, 1))
        assert one.track_ids is None


def test_endless_sources_are_read_as_they_are_used_and_images_are_let_go(model, pixels):
    read = []

    def endless():
        while True:
            read.append(1)
            yield pixels

    results = model.stream(endless(), batch_size=2)
    alive = [weakref.ref(next(results).image) for _ in range(8)]
    assert len(read) == 8
    assert sum(image() is not None for image in alive) <= 4


def test_lists_may_mix_images_videos_and_addresses(model, clip, image, tmp_path, server):
    image.save(tmp_path / "a.png")
    sources = [image, clip, [tmp_path / "a.png"], f"{server.url}/image?id=1"]
    found = list(model.stream(sources, every=5))
    assert len(found) == 5
    assert all(torch.equal(found[i].scores, found[0].scores) for i in (3, 4))


def test_a_folder_and_anything_that_detects_can_be_streamed(model, image, tmp_path):
    for name in ("b.png", "a.png"):
        image.save(tmp_path / name)
    exported = SimpleNamespace(config=model.config, detect=lambda images: detect(model, images))
    assert [found.image.name for found in stream(exported, tmp_path)] == ["a.png", "b.png"]


@pytest.mark.filterwarnings("ignore:.*could not be decoded")
@pytest.mark.parametrize("batch_size", [1, 64])
def test_a_broken_video_gives_its_frames_and_then_an_error(batch_size, model, tmp_path):
    path = cut(make_video(tmp_path / "clip.mp4", movflags="faststart"), 0.7)
    with Video(path) as video:
        expected = len(list(video))
    frames = model.stream(path, batch_size=batch_size)
    assert len([next(frames) for _ in range(expected)]) == expected > 2
    with pytest.raises(VideoError, match="ends after"):
        next(frames)


def test_damaged_frames_of_a_video_are_left_out_with_a_warning(model, tmp_path):
    path = damage(make_video(tmp_path / "clip.mp4", frames=30))
    with pytest.warns(UserWarning, match=r"clip\.mp4: \d+ frames could not be decoded"):
        assert len(list(model.stream(path, every=5))) >= 3


def test_predict_points_from_a_video_to_stream(model, clip):
    with pytest.raises(ImageError, match=r"clip\.mp4: is a video; model\.stream"):
        predict(model, clip)


@pytest.mark.parametrize("name", ["batch_size", "every"])
def test_numbers_below_one_are_refused(name, model, clip):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        list(model.stream(clip, **{name: 0}))


def test_video_errors_are_printed_by_commands():
    assert issubclass(VideoError, UserError)
