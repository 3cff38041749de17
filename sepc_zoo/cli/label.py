"""Label a data set with a model: write a copy in COCO format with boxes of the classes it lacks.

What is labelled stays; detections of classes that have no box in the split become boxes. A model
that is fine-tuned on the copy learns the new classes and keeps the old ones. The data set itself is
never changed; what is wrong with it is left out of the copy, as by check-data --fix.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sepc_zoo.api.options import LoaderOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import option
from sepc_zoo.terminal import say
from sepc_zoo.training.options import DeviceOptions, FormatOptions


@dataclass(frozen=True, kw_only=True)
class Arguments(FormatOptions, DeviceOptions, LoaderOptions):
    """Labels."""

    data: str = option(
        help="data set, in any layout that train reads", metavar="DATA", positional=True
    )
    model: str = option(
        help="model folder, hf-hub:org/repo, exported file, or name of a model with published "
        "weights",
        metavar="NAME_OR_DIR",
    )
    output: str = option(help="new folder for the labelled copy", metavar="DIR")
    split: str = option("train", "split to label; the others are copied", metavar="NAME")
    score_threshold: float = option(
        0.5, "minimum score of a detection that becomes a box", ge=0, le=1
    )
    link: bool = option(False, "hard-link the images of the copy where possible")


def run(arguments: Arguments) -> int:
    """Label the split and write the copy; what is left out is listed in its changes.csv."""
    from sepc_zoo.api.models import model_with_weights
    from sepc_zoo.data.quality.check import check_data
    from sepc_zoo.data.quality.fix import write_clean_copy
    from sepc_zoo.inference.labelling import add_labels
    from sepc_zoo.inference.progress import progress_bar
    from sepc_zoo.training.accelerator import start_processes

    root, target = Path(arguments.data), Path(arguments.output)
    processes = start_processes(arguments.device)
    if processes.num_processes > 1:
        raise ConfigError("label runs in one process; start it without a launcher")
    if target.exists():
        raise ConfigError(f"--output {target} exists already; choose a new folder")
    model = model_with_weights(arguments.model).to(processes.device)
    check = check_data(root, None, progress_bar, arguments.format)
    if arguments.split not in check.listings:
        splits = ", ".join(check.listings)
        raise ConfigError(f"--split {arguments.split}: {root} has the splits {splits}")
    added = Counter[str]()
    label = partial(
        add_labels,
        model,
        split=arguments.split,
        score_threshold=arguments.score_threshold,
        added=added,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
    )
    changes = write_clean_copy(check, target, arguments.link, progress_bar, label)
    counts = ", ".join(f"{count} of {name}" for name, count in added.most_common())
    say(
        f"{target} is the copy; boxes added to {arguments.split}: {counts or 'none'}; its "
        f"changes.csv lists {len(changes)} other changes"
    )
    return 0
