"""Search for the options of `sepc-zoo train` with the highest AP.

It needs --data, --model and --output; the same command again goes on with the search.
"""

import dataclasses
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sepc_zoo.options import Options, option
from sepc_zoo.terminal import make_console, say
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.options import TrainError, TrainOptions

if TYPE_CHECKING:
    from optuna import Study
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Search."""

    passes_on: ClassVar[type[Options]] = TrainOptions

    trials: int = option(20, "number of runs, with those of an earlier call", ge=1)
    space: tuple[str, ...] = option(
        ("lr", "weight_decay"),
        "options of train and entries of the model's config to search: a name, a range such as "
        "lr=1e-4:1e-2, or choices such as opt=sgd,adamw or anchors.base_scale=2,4",
        metavar="NAME[=VALUES]",
    )
    given: dict[str, Any] = field(default_factory=dict)


def run(arguments: Arguments) -> int:
    """Search, and print the trials and the command of the best one."""
    from sepc_zoo.api.given import options_of_run
    from sepc_zoo.training.tune import tune

    for name in ("data", "model", "output"):
        if name not in arguments.given:
            raise TrainError(f"--{name} is missing")
    options = options_of_run(arguments.given)
    study = tune(options, arguments.trials, arguments.space)
    if study is None:  # another process than the main one
        return 0
    make_console().print(trials_table(study))
    values = [trial.value for trial in study.trials if trial.value is not None]
    if max(values, default=0) > 0:
        say(f"the best run again:\n{command_of(study, options.output)}")
    elif values:
        say("no trial has an AP above 0: give --epochs, weights to start from, or another --space")
    return 1 if any("problem" in trial.user_attrs for trial in study.trials) else 0


def command_of(study: "Study", output: str) -> str:
    """The command that repeats the best trial in a new folder."""
    from sepc_zoo.cli.arguments import command_line

    best = read_options(study.best_trial.user_attrs["run"])
    again = dataclasses.replace(best, output=f"{Path(output)}-best")
    return shlex.join(["sepc-zoo", "train", *command_line(again)])


def trials_table(study: "Study") -> "Table":
    """A table of all trials, finished ones first, then by AP; pruned ones have their last AP."""
    from rich.table import Table

    names = sorted({name for trial in study.trials for name in trial.params})
    table = Table()
    for name in ("trial", "AP", *names, "state"):
        table.add_column(name)
    rows = []
    for trial in study.trials:
        last = list(trial.intermediate_values.values())[-1:]
        ap = trial.value if trial.value is not None else last[0] if last else None
        state = trial.user_attrs.get("problem", trial.state.name.lower())
        shown = ["" if ap is None else f"{ap:.3f}", *(_text(trial.params.get(n)) for n in names)]
        rows.append((trial.value is not None, -1 if ap is None else ap, trial.number, shown, state))
    for *_, number, shown, state in sorted(rows, key=lambda row: (-row[0], -row[1], row[2])):
        table.add_row(str(number), *shown, state)
    return table


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
