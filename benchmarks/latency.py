"""Time from the pixels of one image to its detections on the CPU: PyTorch, and exported files.

All forms of a model run in turn in each round, so that a busy machine delays them alike. With one
thread, CPU time is fair even there; wall times need a quiet machine. Weights are random; int8 is
calibrated on a few images, which is enough for times and not for AP.

    python -m benchmarks.latency --files exported --export --images DIR   # writes what is missing
    python -m benchmarks.latency --files exported --threads 1 2 --rounds 20
"""

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.yardsticks import TORCHVISION_NAME
from sepc_zoo.data.images import list_images
from sepc_zoo.evaluation.speed import Setting, build, new_detector
from sepc_zoo.export.exporter import export
from sepc_zoo.export.int8 import Int8, quantize
from sepc_zoo.export.loaded import FORMATS, format_module
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.csv_file import CsvFile

TABLE = Path(__file__).with_name("latency.csv")
TORCHVISIONS = "retinanet_r50_fpn.tv_coco"  # torchvision's RetinaNet with its conventions, as ours
SIZES = {  # height and width
    "retinanet_mnv2_sepc": (256, 320),
    "retinanet_r50_sepc": (640, 640),
    TORCHVISIONS: (640, 640),
}
FORMS = {  # exported files: format, folder inside that of the model
    "onnxruntime": ("onnx", ""),
    "openvino": ("openvino", ""),
    "onnxruntime int8": ("onnx", "int8"),
    "openvino int8": ("openvino", "int8"),
}
Run = Callable[[], object]


class Times(NamedTuple):
    """Seconds of each round."""

    cpu: list[float]  # seconds that the process took
    wall: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=Path, required=True, help="folder of the exported files")
    parser.add_argument("--export", action="store_true", help="write the files that are missing")
    parser.add_argument("--images", type=Path, help="folder of images that calibrate int8")
    parser.add_argument("--models", nargs="+", default=[*SIZES], choices=SIZES)
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=FORMS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    for name in args.models:
        files = {form: file_of(args.files, name, form) for form in args.forms}
        if args.export:
            for form, file in files.items():
                if not file.exists():
                    write(name, form, args.files, args.images)
                    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", flush=True)
            continue
        for threads in args.threads:
            torch.set_num_threads(threads)
            runs = make_runs(name, {k: file for k, file in files.items() if file.exists()}, threads)
            report(name, threads, measure(runs, args.rounds))


def file_of(folder: Path, name: str, form: str) -> Path:
    format, inner = FORMS[form]
    return folder / name / format / inner / f"model{FORMATS[format]}"


def detector_of(name: str) -> Detector:
    height, width = SIZES[name]
    return new_detector(name, Setting(height=height, width=width)).eval()


def write(name: str, form: str, folder: Path, images: Path | None) -> None:
    """Export a model, or quantize what is exported."""
    format, int8 = FORMS[form]
    file = file_of(folder, name, "onnxruntime" if format == "onnx" else "openvino")
    if not file.exists():
        export(detector_of(name), file, format)  # type: ignore[arg-type]
    if int8:
        if images is None:
            raise SystemExit(f"{form}: --images calibrate it")
        quantize(format_module(format), file, Int8(list_images(images)[:10], lambda _: 0.0))


def make_runs(name: str, files: dict[str, Path], threads: int) -> dict[str, Run]:
    """A function for each form of a model, which finds the objects of the same pixels."""
    height, width = SIZES[name]
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    tensor, detector = torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), detector_of(name)
    runs: dict[str, Run] = {"eager": lambda: detector.detect([tensor])}
    if name == TORCHVISIONS:
        runs["eager, torchvision's own code"] = torchvision_run(tensor)
    starts = {"onnx": onnxruntime_run, "openvino": openvino_run}
    for form, file in files.items():
        runs[form] = starts[FORMS[form][0]](file, pixels, threads)
    return runs


@torch.no_grad()
def torchvision_run(image: torch.Tensor) -> Run:
    height, width = image.shape[-2:]
    setting = Setting(height=height, width=width)
    model = build(TORCHVISION_NAME, setting).eval()

    @torch.no_grad()
    def run() -> object:
        return model.postprocess(model(image[None].float() / 255), setting.image_sizes)

    return run


def onnxruntime_run(file: Path, pixels: np.ndarray, threads: int) -> Run:
    from sepc_zoo.export.runtime import load, to_input

    runtime = load(file, threads)
    rule = runtime.metadata["input"]
    size = pixels.shape[:2]
    batch = to_input(pixels, (size[0], size[1]), rule)
    feed = {"images": batch, "sizes": np.array([size], dtype=np.int64)}
    return lambda: runtime.session.run(None, feed)


def openvino_run(file: Path, pixels: np.ndarray, threads: int) -> Run:
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    model: Any = ov.Core().compile_model(file, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})
    dtype = model.input(0).get_element_type().to_dtype()
    batch = pixels[None].astype(dtype)
    sizes = np.array([pixels.shape[:2]], dtype=np.int64)
    return lambda: model([batch, sizes])


def measure(runs: dict[str, Run], rounds: int) -> dict[str, Times]:
    times = {form: Times([], []) for form in runs}
    for form in [*runs] * (rounds + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        runs[form]()
        times[form].cpu.append(time.process_time() - cpu)
        times[form].wall.append(time.perf_counter() - wall)
    return {form: Times(cpu[1:], wall[1:]) for form, (cpu, wall) in times.items()}  # warm


def report(name: str, threads: int, times: dict[str, Times]) -> None:
    """Append a row for each form to the table, and print it."""
    height, width = SIZES[name]
    least = min(times["eager"].cpu)
    for form, (cpu, wall) in times.items():
        row = {
            "model": name,
            "size": f"{height}x{width}",
            "form": form,
            "threads": threads,
            "cpu_ms": round(min(cpu) * 1e3, 1),
            "cpu_ms_median": round(median(cpu) * 1e3, 1),
            "wall_ms": round(min(wall) * 1e3, 1),
            "wall_ms_median": round(median(wall) * 1e3, 1),
            "cpu_over_eager": round(min(cpu) / least, 3),
            "rounds": len(cpu),
            "load": round(os.getloadavg()[0], 1),
            "versions": " ".join(f"{p} {version(p)}" for p in ("torch", "onnxruntime", "openvino")),
        }
        CsvFile(TABLE).append(row)
        print(*row.values(), sep="  ", flush=True)


if __name__ == "__main__":
    main()
