"""Prediction on a video made from images: frames per second, memory, and whether the output plays.

The video has 640x480 pixels and a tone; each image moves through ten frames. Ten boxes are drawn in
each frame: the same ones (no network), or the highest scores of a model with new weights.

    python benchmarks/video.py ../shared/data/coco_by_sa/val2017
"""

import argparse
import platform
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import torch
from PIL import Image, ImageOps

from sepc_zoo.data.images import list_images
from sepc_zoo.factory import create_model
from sepc_zoo.inference.bulk import predict_videos
from sepc_zoo.inference.predictor import ImageDetector
from sepc_zoo.inference.sources import FileList

RATE, SOUND_RATE = 30, 48000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--model", default="retinanet_mnv2_sepc")
    parser.add_argument("--image-size", type=int, nargs=2, default=(128, 160))
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = create_model(
        args.model,
        weights={"image_size": args.image_size},
        postprocess={"max_detections": 10, "score_threshold": 0.0},
    ).eval()
    model.to(args.device)
    found = {
        "boxes": torch.tensor([[60.0 * i, 40, 60 * i + 50, 120] for i in range(10)]) / 4,
        "scores": torch.linspace(0.9, 0.5, 10),
        "labels": torch.arange(10),
    }
    still = SimpleNamespace(config=model.config, detect=lambda images: [dict(found)] * len(images))
    print(
        f"batches of {args.batch_size}, {args.device}, {torch.get_num_threads()} threads of torch"
    )
    print(f"torch {torch.__version__}, PyAV {av.__version__}, {platform.machine()}")
    rows = {
        "no network": (still, False),
        "no network, tracked": (still, True),
        f"{args.model} at {args.image_size}": (model, False),
    }
    with tempfile.TemporaryDirectory() as name:
        clip = make_video(Path(name) / "clip.mp4", list_images(args.images), args.frames)
        print(f"input: {describe(clip)}")
        for text, (detector, track) in rows.items():
            print(f"{text}: {measure(detector, clip, args.batch_size, track)}")
            print(f"{text}: output: {describe(clip.with_name('clip_boxes.mp4'))}")
        broken = clip.with_name("broken.mp4")
        broken.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
        print(f"two thirds of the file: {measure(still, broken, args.batch_size, False)}")
        print(f"two thirds of the file: output: {describe(clip.with_name('broken_boxes.mp4'))}")


def measure(detector: ImageDetector, clip: Path, batch_size: int, track: bool) -> str:
    """Predict a video; the memory of the process is noted before each batch."""
    process, memory = psutil.Process(), [0.0]

    def note_memory() -> bool:
        memory.append(process.memory_info().rss / 2**20)
        return False

    videos = FileList([clip], clip.parent)
    options = {"batch_size": batch_size, "track": track, "stopped": note_memory}
    wall, cpu = time.perf_counter(), time.process_time()
    (result,) = predict_videos(detector, videos, clip.parent, 0.0, **options)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    frames = len(clip.with_name(f"{clip.stem}_boxes.jsonl").read_text().splitlines())
    middle = memory[min(50 // batch_size, len(memory) - 1)]
    problems = [text.rpartition(": ")[2] for text in result.problems]
    return (
        f"{frames / wall:.1f} frames/s, {1000 * cpu / frames:.0f} ms of processor time per frame, "
        f"{middle:.0f} MiB at frame 50, {memory[-1]:.0f} at the last; problems {problems}"
    )


def make_video(path: Path, images: list[Path], frames: int) -> Path:
    """Write a video whose frames move over the images, ten over each."""
    with av.open(str(path), "w", container_options={"movflags": "faststart"}) as out:
        video, sound = out.add_stream("h264", rate=RATE), out.add_stream("aac", rate=SOUND_RATE)
        video.width, video.height, video.pix_fmt = 640, 480, "yuv420p"
        for i in range(frames):
            if i % 10 == 0:
                with Image.open(images[i // 10 % len(images)]) as image:
                    wide = ImageOps.fit(image.convert("RGB"), (720, 480))
            left = 8 * (i % 10)
            frame = av.VideoFrame.from_image(wide.crop((left, 0, left + 640, 480)))
            out.mux(video.encode(frame))
            times = np.arange(i * SOUND_RATE // RATE, (i + 1) * SOUND_RATE // RATE)
            tone = np.sin(times * 0.05).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            samples.sample_rate, samples.pts = SOUND_RATE, int(times[0])
            out.mux(sound.encode(samples))
        out.mux(video.encode(None))
        out.mux(sound.encode(None))
    return path


def describe(path: Path) -> str:
    """Count what a video has when it is decoded."""
    with av.open(str(path)) as video:
        frames = [frame.time for frame in video.decode(video=0)]
        codec, rate = video.streams.video[0].codec_context.name, video.streams.video[0].average_rate
    with av.open(str(path)) as video:
        sounds = sum(1 for _ in video.decode(audio=0))
    size = path.stat().st_size / 2**20
    return (
        f"{len(frames)} frames of {codec} at {rate}/s, the last at {frames[-1]:.3f} s, "
        f"{sounds} frames of sound, {size:.2f} MiB"
    )


if __name__ == "__main__":
    main()
