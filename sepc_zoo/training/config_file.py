"""The options of a run in ``config.yaml`` of its folder, and what a resumed run may change."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import yaml

from sepc_zoo.errors import ConfigError
from sepc_zoo.files import write_text
from sepc_zoo.options import as_dict, flag_of, from_dict
from sepc_zoo.training.options import TrainError, TrainOptions

OPTIONS_FILE = "config.yaml"
MAY_CHANGE = {  # options that a resumed run may change; data are compared by their digest
    *("data", "format", "train_split", "val_split", "drop_bad_boxes"),
    *("epochs", "max_steps", "patience", "workers", "val_interval", "log_interval"),
    *("save_interval", "max_faults", "draw_batches", "log_with", "device"),
}


def write_options(options: TrainOptions) -> None:
    """Write the options to ``config.yaml`` in the run folder."""
    text = yaml.safe_dump(as_dict(absolute(options)), sort_keys=False, allow_unicode=True)
    write_text(Path(options.output) / OPTIONS_FILE, text)


def read_options(run: str | Path) -> TrainOptions:
    """Read the options that a run was started with; its folder may have moved since.

    Raises:
        TrainError: the folder holds no run, or an entry of its ``config.yaml`` does not fit.
    """
    path = Path(run) / OPTIONS_FILE
    if not path.is_file():
        parent = Path(run).parent
        hint = f"; did you mean {parent}?" * (parent / OPTIONS_FILE).is_file()
        reason = f"it has no {OPTIONS_FILE}" if Path(run).is_dir() else "there is no such folder"
        raise TrainError(f"{run} is no run folder to resume: {reason}{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = from_dict(TrainOptions, content, str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ConfigError) as error:
        raise TrainError(f"{run} is no run folder to resume: {error}") from error
    return replace(options, output=str(run))


def check_changes(options: TrainOptions) -> None:
    """Refuse other options for a resumed run than it was started with, but for ``MAY_CHANGE``."""
    saved = read_options(options.output)
    known, asked = as_dict(absolute(saved)), as_dict(absolute(options))
    # None and "auto" stand for what was settled when the run started.
    given = {name for name, value in asked.items() if value not in (None, "auto", known[name])}
    if changed := given - MAY_CHANGE:
        raise TrainError(
            "--resume takes the options that the run was started with, as its numbers depend on "
            f"them, but {_flags(changed)} would change; they are in "
            f"{Path(options.output) / OPTIONS_FILE}. Others may change: {_flags(MAY_CHANGE)}"
        )


def _flags(names: Iterable[str]) -> str:
    return ", ".join(map(flag_of, sorted(names)))


def absolute(options: TrainOptions) -> TrainOptions:
    """The options with absolute paths, which mean the same from any working folder."""

    def resolve(text: str) -> str:
        prefix, colon, path = text.rpartition("local-dir:")
        return f"{prefix}{colon}{Path(path).absolute()}" if Path(path).exists() else text

    file = options.backbone_checkpoint
    return replace(
        options,
        data=tuple(map(resolve, options.data)),
        model=resolve(options.model),
        backbone_checkpoint=resolve(file) if file else None,
        split_by=resolve(options.split_by) if options.split_by else None,
        output=str(Path(options.output).absolute()),
    )
