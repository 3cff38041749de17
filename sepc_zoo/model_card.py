"""The README.md of a model folder."""

from huggingface_hub import ModelCardData

from sepc_zoo.config import DetectorConfig
from sepc_zoo.zoo import neck_name

BODY = """\
# {architecture}

A one-stage object detector built with sepc_zoo: method `{method}`, backbone `{backbone}`, \
neck `{neck}`, {num_classes} classes.
{origin}
## Use

```python
import sepc_zoo

model = sepc_zoo.create_model("local-dir:path/to/this/folder")
model.predict("photo.jpg").save("photo_boxes.jpg")
```

## Input

RGB in 0..1 minus {mean}, divided by {std}; short side {short} pixels, long side at most {long}.

## Labels

{labels}
"""
ORIGIN = """
Converted from the checkpoint that the authors of SEPC (Wang et al., CVPR 2020) published; the AP \
of {ap} on COCO val2017 is theirs, not measured by us. Source: {source}
"""


def model_card(config: DetectorConfig) -> str:
    """Front matter for the hub and a page for people."""
    weights = config.weights
    data = ModelCardData(
        library_name="sepc_zoo",
        pipeline_tag="object-detection",
        license=weights.license or None,
        tags=["object-detection", "pytorch", config.method],
    )
    origin = (
        ORIGIN.format(ap=weights.authors_ap, source=weights.source) if weights.authors_ap else ""
    )
    body = BODY.format(
        architecture=config.architecture,
        method=config.method,
        backbone=config.backbone,
        neck=neck_name(config.neck),
        num_classes=config.num_classes,
        origin=origin,
        mean=weights.mean,
        std=weights.std,
        short=weights.image_size[0],
        long=weights.image_size[1],
        labels=", ".join(config.label_names),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
