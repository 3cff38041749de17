"""Videos, cameras and streams as images one after the other, by PyAV."""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import torch
from torch import Tensor

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.errors import UserError
from sepc_zoo.inference.preprocess import URL_START, LoadedImage, without_password

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer

VIDEO_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
LIVE = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "srt://", "tcp://", "udp://")
DEVICE = "/dev/video"
CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation"}
PIXEL_FORMATS = {1: "gray", 3: "rgb24"}  # by channels of the model's input
TIMEOUT = 10.0  # seconds that an address may send nothing
MAX_LAG = 1.0  # seconds behind a camera or live stream, before frames are left out
MAX_STEP_BACK = 1  # seconds that the time of a frame may lie before that of the previous frame
MISSING_PART = 0.05  # of a video that may be missing at its end, as durations are rounded
USUAL_RATE = Fraction(30)  # frames per second, where a video does not tell


class VideoError(UserError, ValueError):
    """A video that cannot be read, or not to its end; the message names it and the reason."""


def import_av() -> Any:
    """Import PyAV."""
    try:
        import av
    except ImportError as error:
        message = 'videos, cameras and streams need PyAV: pip install "sepc_zoo[video]"'
        raise VideoError(message) from error
    return av


def make_reformatter() -> Any:
    """A converter of frames to other pixel formats and sizes.

    The one of PyAV 19's frames lies in the thread's storage. A process that another thread forks,
    such as a worker of a data loader, clears that storage and hangs.
    """
    return import_av().video.reformatter.VideoReformatter()


def is_address(source: object) -> bool:
    """Whether a source is a URL."""
    return isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://", source) is not None


def is_camera(source: object) -> bool:
    """Whether a source is the index or the device of a camera."""
    is_device = isinstance(source, str | os.PathLike) and str(source).startswith(DEVICE)
    return is_device or isinstance(source, int)


def is_video(source: object) -> bool:
    """Whether a source is a video, camera or stream rather than an image or a collection.

    An HTTP address without a known suffix is requested to learn its content type.
    """
    if is_camera(source):
        return True
    if not isinstance(source, str | os.PathLike):
        return False
    if not is_address(source):
        return Path(source).suffix.lower() in VIDEO_SUFFIXES
    suffix = Path(urlsplit(str(source)).path).suffix.lower()
    if not str(source).startswith(URL_START) or suffix in VIDEO_SUFFIXES:
        return True
    return suffix not in IMAGE_SUFFIXES and not _has_image_content(str(source))


def _has_image_content(url: str) -> bool:
    try:
        with urlopen(url, timeout=TIMEOUT) as answer:
            return bool(answer.headers.get_content_maintype() == "image")
    except (OSError, ValueError, HTTPException):  # PyAV tells why
        return False


class Video:
    """An opened video file, camera or stream; iterating gives its frames, upright, in order.

    Reading continues after frames that cannot be decoded, and ends without an error if the source
    ends too early; ``damaged`` and ``faults`` record it.

    Args:
        source: a file, address, device such as ``/dev/video0`` or index of a camera.
        channels: those of the model's input.
        every: give every n-th frame only.
        keep_sound: collect the packets of sound in ``sound``.

    Attributes:
        rate: frames per second as the file states them, unlike times not always exact.
        num_frames: number of frames as the file states it; 0 if it is unknown.
        time_base: seconds in a tick of the frames' times.
        start: the file's own time at its start, in seconds.
        sound: packets of sound that were read and not written yet.
        damaged: number of frames that could not be decoded, or only in part.
        late: number of frames left out, to keep up with a camera or live stream.
        faults: why the frames ended too early, or a copy has no sound.

    Raises:
        VideoError: it cannot be opened, or has other channels than the model.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | int,
        channels: int = 3,
        every: int = 1,
        keep_sound: bool = False,
    ) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else without_password(str(source))
        if channels not in PIXEL_FORMATS:
            raise VideoError(f"{self.name}: the model takes {channels} channels; videos have 3")
        self.channels = channels
        self.every = every
        self.damaged = self.late = 0
        self.faults: list[str] = []
        self.sound: deque[Packet] = deque()
        av = import_av()
        self._errors = av.error.FFmpegError
        self._reformatter = make_reformatter()
        self._container = self._open(source)
        best = self._container.streams.best("video")
        if not isinstance(best, av.VideoStream):
            self._container.close()
            raise VideoError(f"{self.name}: has no video stream")
        self._stream: VideoStream = best
        self.sound_streams = self._container.streams.audio if keep_sound else ()
        self.rate = self._stream.guessed_rate or self._stream.average_rate or USUAL_RATE
        self.num_frames = self._stream.frames or round(self._duration * self.rate)
        self.time_base = self._stream.time_base or 1 / USUAL_RATE
        self.pixel_ratio = self._stream.sample_aspect_ratio or Fraction(1)
        start = self._container.start_time
        self.start = None if start is None else Fraction(start, 1_000_000)
        self._is_live = is_camera(source) or self.name.startswith(LIVE)
        self._opened: float | None = None  # when the first frame came, on the monotonic clock

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __iter__(self) -> Iterator[LoadedImage]:
        latest = None
        for index, frame in enumerate(self._decode()):
            now = self._time_of(frame, latest)
            latest = now
            if index % self.every == 0 and not self._is_late(now):
                yield LoadedImage(self._pixels(frame), frame=index, time=now)

    @property
    def damage(self) -> str:
        """The number of damaged frames as a message; empty if there are none."""
        text = f"{self.name}: {self.damaged} frames could not be decoded, or only in part"
        return text * bool(self.damaged)

    @property
    def _duration(self) -> float:
        """Seconds as the file states them; 0 where it does not."""
        return (self._container.duration or 0) / 1_000_000

    def _open(self, source: str | os.PathLike[str] | int) -> "InputContainer":
        path = str(source) if isinstance(source, int) else os.fspath(source)
        options, kind = {}, None
        if is_camera(source):
            kind = CAMERA_FORMATS.get(sys.platform)
            if kind is None:
                raise VideoError(f"{self.name}: cameras are read on Linux and macOS only")
            if kind == "v4l2" and isinstance(source, int):
                path = f"{DEVICE}{source}"
        elif not is_address(path):
            path = os.path.expanduser(path)
            if not os.path.isfile(path):  # a pipe might never end
                raise VideoError(f"{self.name}: no such file")
        elif path.startswith("rtsp"):
            options = {"rtsp_transport": "tcp"}  # datagrams get lost, and pictures with them
        try:
            return import_av().open(path, format=kind, options=options, timeout=TIMEOUT)
        except self._errors as error:
            raise VideoError(f"{self.name}: {_reason(error)}") from error

    def _packets(self) -> Iterator["Packet"]:
        """Read up to the end or an error; then record in ``faults`` if much is missing."""
        first = last = None
        try:
            for packet in self._all_packets():
                if packet.pts is not None and packet.time_base:
                    begin = packet.pts * packet.time_base
                    first = begin if first is None else min(first, begin)
                    end = begin + (packet.duration or 0) * packet.time_base
                    last = end if last is None else max(last, end)
                yield packet
        except self._errors as error:
            self.faults.append(f"{self.name}: {_reason(error)}")
            return
        seconds = float(last - first) if last is not None and first is not None else 0.0
        if seconds < self._duration * (1 - MISSING_PART):
            text = f"{self.name}: ends after {seconds:.1f} of {self._duration:.1f} seconds"
            self.faults.append(text)

    def _all_packets(self) -> Iterator["Packet"]:
        while True:
            try:
                yield from (packet for packet in self._container.demux() if packet.size)
                return
            except BlockingIOError:  # cameras of macOS: no frame yet
                time.sleep(0.005)

    def _decode(self) -> Iterator["VideoFrame"]:
        sounds = [stream.index for stream in self.sound_streams]
        for packet in self._packets():
            if packet.stream_index in sounds:
                self.sound.append(packet)
            elif packet.stream_index == self._stream.index:
                yield from self._frames_of(packet)
        yield from self._frames_of(None)  # frames that the decoder has buffered

    def _frames_of(self, packet: "Packet | None") -> Iterator["VideoFrame"]:
        try:
            frames = self._stream.decode(packet)
        except self._errors:
            self.damaged += 1
            return
        for frame in frames:
            self.damaged += frame.is_corrupt
            yield frame

    def _time_of(self, frame: "VideoFrame", latest: Fraction | None) -> Fraction:
        """Seconds since the start; always later than the previous frame's."""
        if frame.pts is None:
            return Fraction(0) if latest is None else latest + 1 / self.rate
        on_clock = frame.pts * self.time_base
        self.start = on_clock if self.start is None else self.start
        now = on_clock - self.start
        if latest is not None and now < latest - MAX_STEP_BACK:  # the clock was set anew
            self.start += now - latest - 1 / self.rate
            now = latest + 1 / self.rate
        return now if latest is None or now > latest else latest + self.time_base

    def _is_late(self, now: Fraction) -> bool:
        if self._opened is None:
            self._opened = time.monotonic() - float(now)
        lag = time.monotonic() - self._opened - float(now)
        is_late = self._is_live and lag > MAX_LAG
        self.late += is_late
        return is_late

    def _pixels(self, frame: "VideoFrame") -> Tensor:
        pixels = self._reformatter.reformat(frame, format=PIXEL_FORMATS[self.channels]).to_ndarray()
        upright = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
        return torch.from_numpy(upright.reshape(*upright.shape[:2], -1)).permute(2, 0, 1)


def _reason(error: Any) -> str:
    if isinstance(error, import_av().error.ExitError):
        return f"nothing came for {TIMEOUT:.0f} seconds"
    return error.strerror or str(error)
