"""A made-up file as ``sepc-zoo export`` writes it, with a network of a few nodes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sepc_zoo.config import DetectorConfig
from sepc_zoo.export import metadata

# Corners of the detections, as shares of the image inside of the batch; the last is padding.
SHARES = np.array([[0.1, 0.2, 0.6, 0.8], [0.3, 0.3, 0.5, 0.9], [0, 0, 0, 0]], np.float32)
FACTORS = np.array([1.0, 0.5, 0.0], np.float32)
LABELS = np.array([1, 0, -1])


def input_rule(config: DetectorConfig, **changes: Any) -> dict[str, Any]:
    """The metadata's ``input`` of a model."""
    return metadata.input_rule(config, config.weights.pad_multiple) | changes


def write_exported(path: Path, rule: dict[str, Any], **changes: Any) -> Path:
    """Write a file that finds two objects in each image.

    Their corners are ``SHARES`` of the image's sides, their scores ``FACTORS`` times the mean of
    the whole batch's pixels over 255.
    """
    names = ["cat", "dog"]
    facts = {
        "format": 1,
        "architecture": "retinanet_r18_fpn",
        "label_names": names,
        "category_ids": [17, None],
        "input": rule,
        "score_threshold": 0.05,
        "max_detections": 3,
        "raw": False,
        "precision": "float32",
        "config": {},
        "weights_sha256": "0" * 64,
        "versions": {"sepc_zoo": "0.1.0", "opset": 20},
        "metrics": {},
    }
    constants = {
        "corners": np.array([1, 0, 1, 0]),
        "one": np.array([1]),
        "axes": np.array([1, 2, 3]),
        "zero": np.array([0]),
        "shares": SHARES[None],
        "factors": FACTORS[None] / 255,
        "fixed_labels": LABELS[None],
    }
    nodes = [
        ("Cast", ["sizes"], "float_sizes", {"to": TensorProto.FLOAT}),
        ("Gather", ["float_sizes", "corners"], "sides", {"axis": 1}),
        ("Unsqueeze", ["sides", "one"], "spread", {}),
        ("Mul", ["spread", "shares"], "boxes", {}),
        ("Cast", ["images"], "pixels", {"to": TensorProto.FLOAT}),
        ("ReduceMean", ["pixels", "axes"], "mean", {"keepdims": 0}),
        ("Unsqueeze", ["mean", "one"], "means", {}),
        ("Mul", ["means", "factors"], "scores", {}),
        ("Gather", ["sizes", "zero"], "heights", {"axis": 1}),
        ("Sub", ["heights", "heights"], "zeros", {}),
        ("Add", ["zeros", "fixed_labels"], "labels", {}),
    ]
    dtype = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[rule["dtype"]]
    batch = rule["batch"] or "n"
    shape = [batch, rule["height"] or "h", rule["width"] or "w", rule["channels"]]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [out], **more) for kind, inputs, out, more in nodes],
        "detector",
        [
            helper.make_tensor_value_info("images", dtype, shape),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, [batch, 2]),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 3, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [batch, 3]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"sepc_zoo": json.dumps(facts | changes)})
    onnx.save(model, path)
    return path
