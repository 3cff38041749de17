"""Exported files of all methods, necks, conventions and formats, compared with their models.

Every export is a row of ``export.csv``; those that stand there are not repeated, so the measurement
can be stopped and continued. Models are small, with random weights that find many objects. An
export that fails is a row too, with the reason.

    python -m benchmarks.export --formats onnx --limit 10
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import onnxruntime
import torch

import sepc_zoo
from sepc_zoo.config import merge_entries
from sepc_zoo.errors import UserError
from sepc_zoo.evaluation.speed import scale_logits
from sepc_zoo.export.exporter import export, read_figures
from sepc_zoo.export.loaded import FORMATS
from sepc_zoo.models.dense import DenseDetector
from sepc_zoo.models.detector import Detector
from sepc_zoo.models.necks.sepc import LevelConv2d
from sepc_zoo.published import PUBLISHED
from sepc_zoo.registry import NECKS
from sepc_zoo.training.csv_file import CsvFile

TABLE = Path(__file__).with_name("export.csv")
KEY = ("model", "conventions", "format")
METHODS = ("retinanet", "freeanchor", "fsaf", "atss", "gfl", "fcos", "fasterrcnn")
BACKBONE = "test_resnet"  # the smallest of timm that has all stages
SMALL_HEAD = {"rpn": {"max_proposals": 100}, "roi": {"width": 64}}
BIAS = 2.5  # on the logits of classes: dozens of objects are over the threshold


class Case(NamedTuple):
    """A model to export, and the published weights whose conventions it has."""

    method: str
    neck: str
    tag: str = ""
    entries: Mapping[str, Any] = MappingProxyType({})

    @property
    def name(self) -> str:
        return f"{self.method}_{BACKBONE}_{self.neck}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--formats", nargs="+", default=["onnx"], choices=[*FORMATS])
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--necks", nargs="+", default=[*NECKS])
    parser.add_argument("--conventions", action="store_true", help="those of published weights")
    parser.add_argument("--limit", type=int, default=1000, help="number of exports")
    args = parser.parse_args()
    cases = convention_cases() if args.conventions else plain_cases()
    table, done = CsvFile(TABLE), 0
    for format in args.formats:
        for case in cases:
            key = dict(zip(KEY, (case.name, case.tag, format), strict=True))
            known = [{entry: row[entry] for entry in KEY} for row in table.read()]
            wanted = case.method in args.methods and case.neck in args.necks
            if wanted and key not in known and done < args.limit:
                table.append(key | measure(case, format) | versions())
                print(table.read()[-1], flush=True)
                done += 1


def plain_cases() -> list[Case]:
    """Every method with every neck that it has; the necks outside, so that methods come first."""
    cases = [Case(method, neck) for neck in ("fpn", *NECKS) for method in METHODS]
    names = {case.name: case for case in cases if sepc_zoo.is_model(case.name)}
    return [*names.values()]


def convention_cases() -> list[Case]:
    """One of the published weights for each set of conventions, without the backbone's."""
    cases: dict[str, Case] = {}
    for row in PUBLISHED.values():
        method, _, rest = row.architecture.partition("_")
        neck = max((name for name in NECKS if rest.endswith(f"_{name}")), key=len)
        entries = {k: v for k, v in row.conventions.items() if k not in ("backbone", "method")}
        entries["weights"] = {
            name: value
            for name, value in entries.get("weights", {}).items()
            if name not in ("dataset", "license", "source", "mean", "std", "image_size")
        }
        cases.setdefault(json.dumps([method, neck, entries]), Case(method, neck, row.name, entries))
    return sorted(cases.values(), key=lambda case: case.neck)


def measure(case: Case, format: str) -> dict[str, Any]:
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = export(build(case), folder, format)  # type: ignore[arg-type]
            figures = read_figures(file.parent)[file.name]
            problem = ""
        except UserError as error:
            figures, problem = {}, " ".join(str(error).split())[:300]
    return {
        "sets_equal": "no" if problem else "yes",
        "detections": figures.get("detections", ""),
        "max_score_difference": figures.get("max_score_difference", ""),
        "max_box_difference": figures.get("max_box_difference", ""),
        "bytes": figures.get("bytes", ""),
        "cpu_seconds": round(time.process_time() - start, 1),  # comparison included
        "problem": problem,
    }


def build(case: Case) -> Detector:
    """A small model with random weights that finds many objects."""
    torch.manual_seed(0)
    entries = case.entries
    if case.method == "fasterrcnn":
        entries = merge_entries({"head": SMALL_HEAD}, entries)
    model = sepc_zoo.create_model(case.name, num_classes=8, channels=16, **entries)
    for module in model.modules():
        if isinstance(module, LevelConv2d) and module.offset is not None:
            torch.nn.init.normal_(module.offset.bias, std=1.0)  # type: ignore[arg-type]
    if isinstance(model, DenseDetector):
        scale_logits(model.head.cls, model)
        with torch.no_grad():
            model.head.cls.bias += BIAS  # type: ignore[operator]
    return model.eval()


def versions() -> dict[str, str]:
    return {
        "sepc_zoo": sepc_zoo.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
