"""Detectors outside of PyTorch: exported files, and what runs them.

The package can be called: ``sepc_zoo.export(model, path)`` is ``sepc_zoo.export.export``. Its names
are imported when they are used, as ``sepc_zoo.export.runtime`` runs without PyTorch.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from sepc_zoo.lazy import lazy_names

if TYPE_CHECKING:
    from sepc_zoo.export.exporter import export
    from sepc_zoo.export.loaded import load_exported

# Nothing reports to the makers of ONNX Runtime (from 1.29 on) and OpenVINO, which do so by default.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", cast(Any, None))  # cannot be imported

# Formats by the suffix of their files.
SUFFIXES = {".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2"}

__all__ = ["export", "load_exported"]
_HOMES = {"export": "sepc_zoo.export.exporter", "load_exported": "sepc_zoo.export.loaded"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return self.export(*args, **kwargs)


sys.modules[__name__].__class__ = _CallablePackage
