"""The README.md of a model folder: front matter for the hub and a page for people."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sepc_zoo.config import DetectorConfig
from sepc_zoo.metric_names import AP_METRICS, METRICS
from sepc_zoo.registry import neck_name

LOCAL_SOURCE = "local-dir:path/to/this/folder"
BODY = """\
# {architecture}

A one-stage object detector built with sepc_zoo: method \
`{method}`, backbone `{backbone}` of timm, neck `{neck}`, {num_classes} classes.
{origin}
## Use

```bash
pip install sepc_zoo
```

```python
import sepc_zoo

model = sepc_zoo.create_model("{source}")
model.predict("photo.jpg").save("photo_boxes.jpg")
```

```bash
sepc-zoo predict photos/ --model {source}
sepc-zoo train --data my_photos --finetune {source}
```
{results}{training}
## Input

RGB in 0 to 1 minus {mean}, divided by {std}; short side {short} pixels, long side at most {long}. \
`predict` and the commands do this themselves.

## Labels

In this order: {labels}.

## Limits

It finds the classes above and nothing else, as boxes and not as outlines, and as well as its \
training photos resemble yours: measure it on photos of your own with `sepc-zoo validate` before \
you rely on it. Scores are no probabilities. Nothing was done against biases of the training data.
"""
ORIGIN = """
Converted from the checkpoint that the authors of SEPC (Wang et al., CVPR 2020) published; the AP \
of {ap} on COCO val2017 is theirs, not measured by us. Source: {source}
"""
RESULTS = """
## Results

Measured with sepc_zoo on {dataset}:

| {header} |
| {line} |
| {figures} |
"""


def model_card(
    config: DetectorConfig,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> str:
    """A model card.

    Args:
        metrics: ours, never published ones; a figure of -1 is one that is undefined.
        dataset: that they were measured on.
        training: how it was trained, a line for each entry.
        repo_id: where it will be on the hub.
    """
    weights = config.weights
    body = BODY.format(
        architecture=config.architecture,
        method=config.method.name,
        backbone=config.backbone.name,
        neck=neck_name(config.neck),
        num_classes=config.num_classes,
        origin=ORIGIN.format(ap=weights.authors_ap, source=weights.source)
        if weights.authors_ap
        else "",
        source=f"hf-hub:{repo_id}" if repo_id else LOCAL_SOURCE,
        results=_results(metrics, dataset or validation_split(weights.dataset)),
        training=_training(training),
        mean=weights.mean,
        std=weights.std,
        short=weights.image_size[0],
        long=weights.image_size[1],
        labels=", ".join(_escape(name) or "(no name)" for name in config.label_names),
    )
    front = _front_matter(config, metrics, dataset or weights.dataset)
    return f"---\n{front.to_yaml()}\n---\n\n{body}"


def _front_matter(
    config: DetectorConfig, metrics: Mapping[str, Any] | None, dataset: str
) -> ModelCardData:
    weights = config.weights
    found = {name: value for name, value in (metrics or {}).items() if name in AP_METRICS}
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=dataset or "own",
            dataset_name=dataset or "own",
            metric_type=name.lower(),
            metric_name=METRICS[name].title,
            metric_value=round(value, 4),
        )
        for name, value in found.items()
        if value >= 0
    ]
    return ModelCardData(
        library_name="sepc_zoo",
        pipeline_tag="object-detection",
        license=weights.license or None,
        datasets=[_slug(name) for name in weights.dataset.split(" + ") if name] or None,
        base_model=f"timm/{config.backbone.name}" if "." in config.backbone.name else None,
        tags=["object-detection", "pytorch", "timm", config.method.name],
        # model-index must have both
        model_name=config.architecture if results else None,
        eval_results=results or None,
    )


def validation_split(dataset: str) -> str:
    """What training measures on."""
    return f"the validation split of {dataset}" if dataset else "the validation split"


def _results(metrics: Mapping[str, Any] | None, dataset: str) -> str:
    found = {name: metrics[name] for name in AP_METRICS if metrics and metrics.get(name, -1) >= 0}
    if not found:
        return ""
    return RESULTS.format(
        dataset=_escape(dataset),
        header=" | ".join(found),
        line=" | ".join("---" for _ in found),
        figures=" | ".join(f"{value:.3f}" for value in found.values()),
    )


def _training(training: Mapping[str, Any] | None) -> str:
    if not training:
        return ""
    lines = [
        f"- {name.replace('_', ' ')}: {_escape(_in_words(value))}"
        for name, value in training.items()
    ]
    return "\n## Training\n\n" + "\n".join(lines) + "\n"


def _slug(dataset: str) -> str:
    """What the hub takes for the id of a data set."""
    return re.sub(r"[^\w./-]+", "-", dataset).strip("-")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        parts = [f"{name.replace('_', ' ')} {_in_words(v)}" for name, v in value.items()]
        return ", ".join(parts) or "none"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(str, value))})"
    return "none" if value is None else str(value)


def _escape(text: str) -> str:
    """Text of a user's that is not to be read as Markdown, HTML or a formula."""
    return re.sub(r"([\\`*_\[\]<>|&~$#])", r"\\\1", " ".join(text.split()))
