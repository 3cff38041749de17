"""Search of hyperparameters by Optuna: a trial is a run, and poor ones are stopped early."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout

from sepc_zoo.config import merge_entries
from sepc_zoo.errors import UserError
from sepc_zoo.ops.distributed import on_main_process
from sepc_zoo.options import (
    OptionError,
    as_dict,
    flatten,
    nearest_option,
    option_fields,
    strip_none,
)
from sepc_zoo.terminal import say
from sepc_zoo.training.accelerator import start_processes
from sepc_zoo.training.callback import Callback, Stop
from sepc_zoo.training.checkpoint import STATE_FILE
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.dry_run import release_memory, settle_batch_size
from sepc_zoo.training.inputs import read_inputs
from sepc_zoo.training.options import NOT_MODEL_KWARGS, TrainOptions
from sepc_zoo.training.recipes import choose_recipe
from sepc_zoo.training.resilience.signals import Interrupted
from sepc_zoo.training.run_folder import LOCK_FILE, check_output
from sepc_zoo.training.trainer import train

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

    from sepc_zoo.training.run import Run

STUDY_FILE, STUDY_NAME = "study.jsonl", "tune"
DEFAULT_SPACE = ("lr", "weight_decay")
# Options that are searched from a tenth to ten times their default.
RELATIVE = ("lr", "weight_decay", "clip_grad", "layer_decay", "warmup_steps")
OPTIONS = {e.name: e for e in option_fields(TrainOptions) if e.name not in ("data", "output")}
LOG_RATIO = 10  # high over low, from which a range is searched by its logarithm
MAX_FAILED = 3  # trials that may fail before the first has an AP


class TuneError(UserError, RuntimeError):
    """A search that cannot start or go on."""


class Prune(Callback):
    """Report the AP of each validation to the study, and stop a run that falls behind."""

    def __init__(self, trial: Trial | None) -> None:
        self.trial = trial  # None in all processes but the main one
        self.pruned = False

    def after_validation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        epoch, trial = run.progress.epoch + 1, self.trial
        if trial is not None:
            # A run that was resumed may repeat its last validation.
            if epoch not in trial.study.trials[trial.number].intermediate_values:
                trial.report(metrics["AP"], epoch)
            self.pruned = epoch < run.num_epochs and trial.should_prune()
        [self.pruned] = broadcast_object_list([self.pruned])
        if self.pruned:
            raise Stop(f"pruned: AP {metrics['AP']:.3f} is below the median after epoch {epoch}")


def tune(
    options: TrainOptions, num_trials: int, space: Sequence[str] = DEFAULT_SPACE
) -> Study | None:
    """Search for the options of the highest AP; the same call goes on with an interrupted search.

    Each trial is the run ``trial_000``, ``trial_001`` ... in ``options.output``, the first with the
    values that a run has by default. Several processes may call it together.

    Args:
        options: of all trials.
        num_trials: number of trials, with those of earlier calls.
        space: what to search, such as ``lr``, ``lr=1e-4:1e-2``, ``opt=sgd,adamw`` or
            ``anchors.base_scale=2,4``.

    Returns:
        The study, in the main process.

    Raises:
        OptionError: a part of the space cannot be read or searched.
        TuneError: Optuna is missing, another process searches in this folder, the folder holds
            another search, or the first trials all failed.
        UserError: in the other processes, where the main one raises any of these.
        Interrupted: SIGINT or SIGTERM arrived; the study and the run of its trial were saved.
    """
    if find_spec("optuna") is None:
        raise TuneError('tune needs Optuna: pip install "sepc_zoo[tune]"')
    processes = start_processes(options.device)
    asked, options = options, settle_batch_size(options)
    defaults = default_values(options, processes.num_processes)
    dimensions = dict(read_dimension(text, defaults) for text in space)
    study: Study | None = None
    trial: Trial | None = None
    with ExitStack() as stack:

        def ask() -> tuple[dict[str, Any], int] | None:
            """The values and the number of the next trial."""
            nonlocal study, trial
            if study is None:
                study = open_study(asked, space, stack)
                inside = [name for name, d in dimensions.items() if contains(d, defaults[name])]
                if not study.trials:
                    study.enqueue_trial({name: defaults[name] for name in inside})
            trial = next_trial(study, num_trials, dimensions)
            return None if trial is None else (trial.params, trial.number)

        while (values := on_main_process(ask)) is not None:
            run_trial(study, trial, trial_options(options, *values))
    return study


def run_trial(study: Study | None, trial: Trial | None, options: TrainOptions) -> None:
    """Train with the options of a trial, and tell the study how it went."""
    from optuna.trial import TrialState

    prune, failure, metrics = Prune(trial), "", {"best_AP": -1.0}
    is_saved = (Path(options.output) / STATE_FILE).is_file()
    try:
        options = read_options(options.output) if is_saved else options
        metrics = train(options, resume=is_saved, callbacks=[prune])
    except Interrupted as interrupted:
        folder = Path(options.output).parent
        text = f"the search in {folder} is saved; repeat its command to go on"
        raise Interrupted(text, interrupted.status) from interrupted
    except (UserError, RuntimeError, ArithmeticError) as error:
        failure = f"{type(error).__name__}: {error}"
    release_memory()
    if study is None or trial is None:
        return
    trial.set_user_attr("run", options.output)
    if not failure:
        how = {"state": TrialState.PRUNED} if prune.pruned else {"values": metrics["best_AP"]}
        study.tell(trial, **how)
        return
    trial.set_user_attr("problem", failure)
    study.tell(trial, state=TrialState.FAIL)
    say(f"trial {trial.number} failed: {failure}")
    states = [t.state for t in study.trials]
    if states.count(TrialState.FAIL) >= MAX_FAILED and TrialState.COMPLETE not in states:
        raise TuneError(f"the first {MAX_FAILED} trials failed, the last with {failure}")


def open_study(options: TrainOptions, space: Sequence[str], stack: ExitStack) -> Study:
    """Open the study in the folder of the options, or start it; ``stack`` keeps its lock."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder = Path(options.output)
    if not (folder / STUDY_FILE).exists():
        check_output(folder, resume=False)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(FileLock(folder / LOCK_FILE, timeout=0))
    except Timeout as error:
        raise TuneError(f"another process searches in {folder}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(folder / STUDY_FILE))),
        study_name=STUDY_NAME,
        load_if_exists=True,
        direction="maximize",
        # Nothing is pruned by the first epoch, or before five trials are done.
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=2),
    )
    # A search that goes on must not draw the same numbers again.
    seed = (options.seed + len(study.trials)) % 2**32
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    asked = as_dict(options) | {"space": list(space), "output": ""}
    saved = study.user_attrs.get("options", asked)
    changed = [name for name in asked if asked[name] != saved.get(name)]
    if changed:
        raise TuneError(
            f"{folder} holds a search with other {', '.join(changed)}; repeat its command to go "
            "on, or choose another --output"
        )
    study.set_user_attr("options", asked)
    return study


def next_trial(
    study: Study, num_trials: int, dimensions: dict[str, BaseDistribution]
) -> Trial | None:
    """The trial that was interrupted, or a new one; None if there are enough."""
    from optuna.trial import Trial, TrialState

    interrupted = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    finished = sum(trial.state.is_finished() for trial in study.trials)
    if not interrupted and finished >= num_trials:
        return None
    trial = Trial(study, interrupted[0]._trial_id) if interrupted else study.ask()
    for name, dimension in dimensions.items():
        trial._suggest(name, dimension)  # keeps a value that was chosen before the interruption
    return trial


def trial_options(options: TrainOptions, chosen: Mapping[str, Any], number: int) -> TrainOptions:
    """The options of a trial's run."""
    own: dict[str, Any] = {"output": str(Path(options.output) / f"trial_{number:03d}")}
    own["model_kwargs"] = options.model_kwargs
    for name, value in chosen.items():
        if name in OPTIONS:
            own[name] = value
            continue
        for part in reversed(name.split(".")):
            value = {part: value}
        own["model_kwargs"] = merge_entries(own["model_kwargs"], value)
    return dataclasses.replace(options, **own)


def read_dimension(text: str, defaults: Mapping[str, Any]) -> tuple[str, BaseDistribution]:
    """Read a part of the space, such as ``lr``, ``lr=1e-4:1e-2`` or ``opt=sgd,adamw``."""
    from optuna.distributions import CategoricalDistribution

    name, separator, given = text.partition("=")
    default, hint = defaults.get(name), strip_none(typing.get_type_hints(TrainOptions).get(name))
    if name not in defaults:
        near = nearest_option(name, OPTIONS.values())
        hint = f"; did you mean {near}?" if near else ""
        what = "which is no option of train and no entry of the model's config"
        raise OptionError("space", f"has {name!r:.80}, {what}{hint}")
    if separator:
        is_range = ":" in given
        values = tuple(_literal(item) for item in given.split(":" if is_range else ","))
        numbers = all(type(value) in (int, float) for value in values)
        if is_range and not (len(values) == 2 and numbers and values[0] < values[1]):
            raise OptionError("space", f"has {text!r:.80}; a range is LOWEST:HIGHEST")
        return name, number_range(*values) if is_range else CategoricalDistribution(values)
    if hint is bool:
        return name, CategoricalDistribution((False, True))
    if typing.get_origin(hint) is Literal:
        return name, CategoricalDistribution(typing.get_args(hint))
    if name in RELATIVE and default:
        limit = OPTIONS[name].le or 10 * default
        return name, number_range(hint(default / 10), hint(min(10 * default, limit)))
    ways = f"write {name}=LOWEST:HIGHEST or {name}=A,B,C"
    raise OptionError("space", f"has {name!r:.80} without values; {ways}")


def number_range(low: float, high: float) -> BaseDistribution:
    """Numbers of a range, by their logarithm where it is wide; whole ones between whole ones."""
    from optuna.distributions import FloatDistribution, IntDistribution

    kind: Any = IntDistribution if type(low) is type(high) is int else FloatDistribution
    return kind(low, high, log=low > 0 and high / low >= LOG_RATIO)


def contains(dimension: Any, value: Any) -> bool:
    """Whether a trial may choose a value."""
    if hasattr(dimension, "choices"):
        return value in dimension.choices
    return isinstance(value, int | float) and dimension.low <= value <= dimension.high


def default_values(options: TrainOptions, num_processes: int) -> dict[str, Any]:
    """The value of each option and of each entry of the model's config in a run by default."""
    data, _, model, *_ = read_inputs(options, resume=False)
    recipe = dataclasses.asdict(choose_recipe(options, model.config, data, num_processes))
    config = msgspec.to_builtins(model.config)
    entries = {name: value for name, value in config.items() if name not in NOT_MODEL_KWARGS}
    given = {name: getattr(options, name) for name in OPTIONS}
    own = {name: recipe.get(name) if v is None else v for name, v in given.items()}
    return dict(flatten(entries)) | own


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
