"""The model card, README.md of a model folder: metadata for the hub and a page to read."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment

from sepc_zoo.config import DetectorConfig
from sepc_zoo.metric_names import AP_METRICS, METRICS
from sepc_zoo.published import PUBLISHED, PUBLISHERS
from sepc_zoo.registry import neck_name

LOCAL_SOURCE = "local-dir:path/to/this/folder"
TEMPLATE = """\
# {{ config.architecture | code }}

An object detector built with sepc_zoo: method `{{ config.method.name }}`, \
backbone `{{ config.backbone.name | code }}` of timm, \
neck `{{ neck }}`, {{ config.num_classes }} classes.
{% if weights.authors_ap %}

Converted from the checkpoint of {{ publisher }}. The AP of {{ weights.authors_ap }} on \
COCO val2017 is theirs, not measured by us. Source: {{ weights.source | link }}{% if terms %}\
. Terms: {{ terms }}.{% endif %}

{% endif %}

## Use

```bash
pip install sepc_zoo
```

```python
import sepc_zoo

model = sepc_zoo.create_model("{{ source }}")
model.predict("street.jpg").save("street_boxes.jpg")
```

```bash
sepc-zoo predict images/ --model {{ source }}
sepc-zoo train --data my_data --finetune {{ source }}
```
{% if figures %}

## Results

Measured with sepc_zoo on {{ dataset | plain }}:

| {{ figures | join(" | ") }} |
|{{ " --- |" * figures | length }}
|{% for value in figures.values() %} {{ "%.3f" % value }} |{% endfor %}

{% endif %}
{% if training %}

## Training

{% for name, value in training.items() %}
- {{ name.replace("_", " ") }}: {{ value | words | plain }}
{% endfor %}
{% endif %}

## Input

{{ "RGB" if weights.mean | length == 3 else "Channels" }} in 0 to 1 minus {{ weights.mean }}, \
divided by {{ weights.std }}; short side {{ weights.image_size[0] }} pixels, long side at most \
{{ weights.image_size[1] }}. `predict` and the commands do this themselves.

## Labels

In this order: {% for name in config.label_names %}{{ name | plain or "(no name)" }}\
{{ "" if loop.last else ", " }}{% endfor %}.

## Limits

The model finds only the classes above, as boxes without outlines. How well it does depends on how \
much your images resemble those of its training: measure it on your own images with \
`sepc-zoo validate` before you rely on it. Scores are not probabilities. Biases of the training \
data were not corrected.
"""


def model_card(
    config: DetectorConfig,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> str:
    """Write a model card.

    Args:
        config: config of the model.
        metrics: figures of ``validate``, never published ones; -1 stands for an undefined figure.
        dataset: name of the data that ``metrics`` were measured on; by default the validation
            split of the training data.
        training: facts about the training; each becomes a line.
        repo_id: repository on the hub that the card is for.
    """
    weights = config.weights
    row = PUBLISHED.get(f"{config.architecture}.{weights.tag}")
    figures = {name: metrics[name] for name in AP_METRICS if metrics and metrics.get(name, -1) >= 0}
    front = _front_matter(config, figures, dataset or weights.dataset or "own")
    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"plain": _escape, "words": _in_words, "link": _link, "code": _code}
    body = environment.from_string(TEMPLATE).render(
        config=config,
        weights=weights,
        neck=neck_name(config.neck),
        publisher=PUBLISHERS[row.publisher].title if row else "its publisher",
        terms=PUBLISHERS[row.publisher].terms if row else "",
        source=f"hf-hub:{repo_id}" if repo_id else LOCAL_SOURCE,
        figures=figures,
        dataset=dataset or f"the validation split of {weights.dataset}".removesuffix(" of "),
        training=training,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body}"


def _front_matter(
    config: DetectorConfig, figures: Mapping[str, float], dataset: str
) -> ModelCardData:
    weights = config.weights
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=name.lower(),
            metric_name=METRICS[name].title,
            metric_value=round(value, 4),
        )
        for name, value in figures.items()
    ]
    names = filter(None, weights.dataset.split(" + "))
    # As ids of the hub.
    datasets = [re.sub(r"[^\w./-]+", "-", name).strip("-") for name in names]
    return ModelCardData(
        library_name="sepc_zoo",
        pipeline_tag="object-detection",
        license=weights.license or None,
        datasets=datasets or None,
        base_model=f"timm/{config.backbone.name}" if "." in config.backbone.name else None,
        tags=["object-detection", "pytorch", "timm", config.method.name],
        # model-index on the hub needs both a name and results.
        model_name=config.architecture if results else None,
        eval_results=results or None,
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        parts = [f"{name.replace('_', ' ')} {_in_words(v)}" for name, v in value.items()]
        return ", ".join(parts) or "none"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(str, value))})"
    return "none" if value is None else str(value)


def _link(text: str) -> str:
    """Return a plain address unchanged and any other text escaped."""
    return text if re.fullmatch(r"https://[\w./%?=&#~-]+", text) else _escape(text)


def _code(text: str) -> str:
    """Replace characters that no name has, so that the text can stand in backticks."""
    return re.sub(r"[^\w./:+-]+", " ", text)


def _escape(text: str) -> str:
    """Escape untrusted text, so that it is not read as Markdown, HTML or a formula."""
    return re.sub(r"([\\`*_\[\]<>|&~$#])", r"\\\1", " ".join(text.split()))
