"""Export detectors to files for other runtimes, and run such files.

The package can be called: ``sepc_zoo.export(model, path)`` is ``sepc_zoo.export.export``. Its names
are imported lazily, because ``sepc_zoo.export.runtime`` runs without PyTorch.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast

from sepc_zoo.lazy import lazy_names

if TYPE_CHECKING:
    from sepc_zoo.export.exporter import export
    from sepc_zoo.export.loaded import load_exported

# Switch off telemetry, which ONNX Runtime (from 1.29 on) and OpenVINO send by default.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", cast(Any, None))  # makes its import fail

Format = Literal["onnx", "openvino", "pt2"]
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}

__all__ = ["export", "load_exported"]
_HOMES = {"export": "sepc_zoo.export.exporter", "load_exported": "sepc_zoo.export.loaded"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return self.export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
