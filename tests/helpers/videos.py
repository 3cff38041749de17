"""Tiny videos, made and read by PyAV."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from sepc_zoo.inference.video import make_reformatter

av = pytest.importorskip("av", reason='videos need PyAV: pip install "sepc_zoo[video]"')

RATE, SOUND_RATE = 10, 8000


def make_video(
    path, frames=10, size=(64, 64), sound="", rotation=0, times=None, codec="h264", **options
):
    """Write a video whose frame i has noise around the grey level 40 + 15 i, darker below.

    ``times`` are milliseconds; without them it has ten frames per second. ``sound`` is the codec of
    a tone, ``options`` are those of the format.
    """
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", container_options=options) as out:
        stream = out.add_stream(codec, rate=RATE)
        stream.height, stream.width = size
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", 4
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip(f"PyAV {av.__version__} writes no rotation")
            stream.set_display_rotation(rotation)
        audio = out.add_stream(sound, rate=SOUND_RATE, layout="mono") if sound else None
        for i in range(frames):
            pixels = np.full((*size, 3), 40 + 15 * i) + noise.integers(-8, 8, (*size, 3))
            pixels[size[0] // 2 :] -= 30
            frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8))
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if audio:
                tone = np.sin(np.arange(SOUND_RATE // RATE, dtype=np.float32)[None])
                samples = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
                samples.sample_rate, samples.pts = SOUND_RATE, i * SOUND_RATE // RATE
                out.mux(audio.encode(samples))
        for one in filter(None, (stream, audio)):
            out.mux(one.encode(None))
    return Path(path)


def read_video(path):
    """The frames of a video, each as (seconds, ndarray ``(H, W, 3)``)."""
    reformat = make_reformatter().reformat
    with av.open(str(path)) as video:
        frames = [(frame.time, reformat(frame, format="rgb24")) for frame in video.decode(video=0)]
        return [(seconds, frame.to_ndarray()) for seconds, frame in frames]


def sound_of(path):
    """The encoded sound of a video, packet by packet, with its times in seconds."""
    with av.open(str(path)) as video:
        packets = [packet for packet in video.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]


def cut(path, part):
    """Leave the first part of a file, from 0 to 1."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


def damage(path):
    """Overwrite some bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) * 2 // 3, 211):
        content[place] ^= 0xFF
    path.write_bytes(content)
    return path
