"""Load in a new process what ``sepc-zoo import`` has kept: ``imported_models.py REFERENCE``.

Models with a golden file are compared with it. Each model prints a line of JSON: its name, and
"golden" or the digest of its tensors.
"""

import hashlib
import json
import sys
from pathlib import Path

from test_parity import (
    GOLDENS,
    Golden,
    import_authors,
    our_name,
    read_figures,
    test_detections_equal_the_original,
    test_predictions_equal_the_original,
)

from sepc_zoo import create_model, list_models


def digest(model) -> str:
    """SHA-256 of names and values of all tensors."""
    content = hashlib.sha256()
    for key, value in model.state_dict().items():
        content.update(f"{key} {tuple(value.shape)} {value.dtype} ".encode())
        content.update(value.contiguous().view(-1).numpy())
    return content.hexdigest()


def main(reference: Path) -> None:
    goldens = {our_name(name): name for name in GOLDENS}
    for name in list_models("*.coco_1x", pretrained=True):
        short = name.partition(".")[0]
        model = create_model(name, pretrained=True)
        assert model.config.architecture == short
        if short not in goldens:
            print(json.dumps([short, digest(model)]))
            continue
        figures = read_figures(reference, goldens[short])
        golden = Golden(import_authors(reference), figures, model)
        test_predictions_equal_the_original(golden)
        test_detections_equal_the_original(golden)
        print(json.dumps([short, "golden"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
