"""torch.hub: ``torch.hub.load(repo, "detector", "retinanet_r50_sepc", num_classes=3)``."""

from sepc_zoo import create_model as detector  # noqa: F401

dependencies = ["torch", "torchvision", "timm", "huggingface_hub", "safetensors", "PIL"]
