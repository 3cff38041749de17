"""Annotated videos: frames with boxes and the sound, and a line of JSON for each frame."""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from PIL import Image

from sepc_zoo.files import write_atomically
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.preprocess import LoadedImage
from sepc_zoo.inference.sources import SUFFIXES
from sepc_zoo.inference.video import Video, VideoError, import_av, make_reformatter

if TYPE_CHECKING:
    from av import AudioStream

QUALITY = {"crf": "20", "preset": "veryfast"}  # of libx264
Batch = Sequence[tuple[LoadedImage, Detections]]


class VideoResult(NamedTuple):
    """The result of one video."""

    text: str  # what was written; empty where nothing was
    problems: list[str]  # each names the video
    best_score: float = 0.0  # the highest score, perhaps under the threshold


class VideoWriter:
    """An H.264 video in an mp4 file, with the sound of the video that it is made from.

    Args:
        path: file to write, ``.mp4``.
        video: the source of times and sound, opened with ``keep_sound``.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self.video = video
        options = {"movflags": "faststart"}  # players on the web start before the end
        self._container = import_av().open(str(path), "w", format="mp4", container_options=options)
        self._reformatter = make_reformatter()
        self._stream: Any = None  # opened with the size of the first picture
        self._sounds = {stream.index: self._copy(stream) for stream in video.sound_streams}
        self._last_dts = dict.fromkeys(self._sounds, -sys.maxsize)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Write the frames that the encoder has buffered, and the index of the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
            self.write_sound()
        self._container.close()

    def write(self, picture: Image.Image, seconds: Fraction) -> None:
        """Write a picture, resized to the first one, at a later time than the one before."""
        if self._stream is None:
            self._stream = self._start(picture.size)
        stream, frame = self._stream, import_av().VideoFrame.from_image(picture)
        size = stream.width, stream.height
        frame = self._reformatter.reformat(frame, *size, "yuv420p", dst_colorspace="itu709")
        frame.pts, frame.time_base = round(seconds / self.video.time_base), self.video.time_base
        self._container.mux(stream.encode(frame))
        self.write_sound()

    def write_sound(self) -> None:
        """Write the sound that was read since the last call; drop packets out of order."""
        while self.video.sound:
            packet = self.video.sound.popleft()
            target, index = self._sounds[packet.stream_index], packet.stream_index
            if target is None or packet.dts is None or packet.dts <= self._last_dts[index]:
                continue
            self._last_dts[index] = packet.dts
            shift = round((self.video.start or 0) / packet.time_base)
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            packet.stream = target
            self._container.mux(packet)

    def _start(self, size: tuple[int, int]) -> Any:
        stream = self._container.add_stream("h264", rate=self.video.rate / self.video.every)
        stream.width, stream.height = (max(2, side - side % 2) for side in size)
        stream.pix_fmt, stream.options = "yuv420p", QUALITY
        context = stream.codec_context
        context.time_base = self.video.time_base
        context.sample_aspect_ratio = self.video.pixel_ratio
        context.colorspace, context.color_range = 1, 1  # BT.709, 16…235
        return stream

    def _copy(self, stream: "AudioStream") -> Any:
        try:
            return self._container.add_stream_from_template(stream)
        except ValueError:  # mp4 holds no such codec
            codec = stream.codec_context.name
            text = f"{self.video.name}: sound of type {codec} cannot be copied into mp4"
            self.video.faults.append(text)
            return None


def write_video(
    video: Video, batches: Iterable[Batch], path: Path, score_threshold: float
) -> VideoResult:
    """Write the frames with detections of at least a score, and a JSON line for each beside them.

    A thread draws and encodes a batch while the next one is detected.
    """
    count, best, began = 0, 0.0, time.monotonic()

    def write_frames(file: Path, lines_file: Path) -> None:
        nonlocal count, best
        pending: Future[None] | None = None
        with (
            open(lines_file, "w", encoding="utf-8") as lines,
            VideoWriter(file, video) as writer,
            ThreadPoolExecutor(1) as thread,
        ):
            for batch in batches:
                if pending is not None:
                    pending.result()
                best = max([best, *(s for _, found in batch for s in found.scores[:1].tolist())])
                kept = [(image, found[found.scores >= score_threshold]) for image, found in batch]
                pending = thread.submit(write_batch, kept, writer, lines)
                count += len(batch)
            if pending is None:
                raise VideoError("; ".join(video.faults) or f"{video.name}: has no frames")
            pending.result()

    write_atomically(
        path.with_suffix(".jsonl"),
        lambda lines: write_atomically(path, lambda file: write_frames(file, lines)),
    )
    rate = count / (time.monotonic() - began)
    late = f", {video.late} were left out to keep up with it" * bool(video.late)
    text = f"{path}: {count} frames of {video.name} at {rate:.1f} frames/s{late}"
    return VideoResult(text, [fault for fault in (*video.faults, video.damage) if fault], best)


def write_batch(batch: Batch, writer: VideoWriter, lines: TextIO) -> None:
    """Write the frames of a batch with their boxes, and a line of JSON for each."""
    for image, found in batch:
        seconds = image.time or Fraction(0)
        writer.write(found.draw(), seconds)
        line = {"frame": image.frame, "time": round(float(seconds), 6), "detections": rows(found)}
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def rows(found: Detections) -> list[dict[str, Any]]:
    """Convert detections of a frame for JSON: ``box`` (xyxy), ``score``, ``label``, ``name``.

    If objects are tracked, also ``track_id``, which may be None.
    """
    result = [
        detection._asdict() | {"box": [round(side, 2) for side in detection.box]}
        for detection in found
    ]
    if found.track_ids is not None:
        for row, track in zip(result, found.track_ids.tolist(), strict=True):
            row["track_id"] = track if track >= 0 else None
    return result


def video_path(output: Path, video: Path) -> Path:
    """Build the path of a video's annotated video; no two videos have the same."""
    is_plain = video.suffix == ".mp4" and Path(video.stem).suffix.lower() not in SUFFIXES
    name = video.stem if is_plain else video.name
    return output / video.parent / f"{name}_boxes.mp4"
