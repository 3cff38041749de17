"""Entry points of torch.hub: ``torch.hub.load(repo, "retinanet_r50_sepc", num_classes=3)``.

``torch.hub.list(repo)`` lists the models, ``torch.hub.help(repo, name)`` their arguments.
"""

from sepc_zoo.torch_hub import make_entry_points as _make_entry_points

dependencies = [
    "torch",
    "torchvision",
    "timm",
    "huggingface_hub",
    "safetensors",
    "PIL",
    "yaml",
    "msgspec",
]

globals().update(_make_entry_points())
