"""``sepc_zoo.train``: the command in Python."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sepc_zoo.api.options import StartOptions
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import check_names, takes_options
from sepc_zoo.training.options import TrainOptions

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Unpack

    from sepc_zoo.api.keywords import Source, TrainKeywords
    from sepc_zoo.models.detector import Detector
    from sepc_zoo.training.callback import Callback


@dataclass(frozen=True)
class TrainResult:
    """A finished run; everything is read from its folder when it is asked for.

    A run that ended before its first validation has no models: ``HubError``.

    Attributes:
        output: the run folder.
        metrics: those of the last validation: ``AP``, ``AP50``, … from 0 to 1 and ``per_class``;
            and ``best_AP``.
    """

    output: Path
    metrics: Mapping[str, Any]

    @cached_property
    def best(self) -> Detector:
        """The model with the highest AP, in eval mode on the CPU."""
        return self._load("best")

    @cached_property
    def last(self) -> Detector:
        """The model of the last validation, in eval mode on the CPU."""
        return self._load("last")

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``log.csv``: losses, learning rate and speed, or ``AP`` and ``AP50``."""
        from sepc_zoo.training.csv_file import CsvFile
        from sepc_zoo.training.logging import LOG_FILE

        rows = CsvFile(self.output / LOG_FILE).read()
        return [{name: _number(text) for name, text in row.items() if text} for row in rows]

    @property
    def report(self) -> Path | None:
        """The page ``report.html`` of the run, or None where it has none."""
        file = self.output / "report.html"
        return file if file.is_file() else None

    def plot(self) -> Figure:
        """Plot losses by step and AP by epoch, in a figure of matplotlib that notebooks show.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the log has no rows.
        """
        from sepc_zoo.evaluation.plots import draw_curves
        from sepc_zoo.training.logging import LOG_FILE

        return draw_curves(self.output / LOG_FILE)

    def __repr__(self) -> str:
        names = ("AP", "AP50", "best_AP")
        figures = (f"{name} {self.metrics[name]:.3f}" for name in names if name in self.metrics)
        return f"TrainResult({', '.join(figures)}; best, last, history, plot() of {self.output})"

    def _load(self, name: str) -> Detector:
        from sepc_zoo.factory import load_model

        return load_model(self.output / name)


@takes_options(TrainOptions)
def train(
    *,
    finetune: Source | None = None,
    config: Source | None = None,
    resume: Source | None = None,
    callbacks: Sequence[Callback] = (),
    transform: Callable[[Any, Any], Any] | None = None,
    **options: Unpack[TrainKeywords],
) -> TrainResult:
    """Train a model on a data set; the same run as ``sepc-zoo train``.

    It works in a notebook and in any thread. In the main thread an interrupt saves the run.

    Args:
        finetune: start from trained weights, instead of ``model``: a model folder,
            ``hf-hub:org/repo``, or a name with published weights.
        config: YAML file of options; those that are given win.
        resume: folder of a run to go on with; give callbacks and transform again.
        callbacks: objects of ``sepc_zoo.Callback``, called after the run's own.
        transform: called with each training image before the run's own augmentation, in the
            processes that read images. It gets the image, uint8 ``(C, H, W)``, and a target with
            ``boxes (G, 4)`` in xyxy pixels, ``labels (G,)``, ``iscrowd (G,)`` and ``image_id``, and
            returns both; image and boxes are tv_tensors of torchvision. It may change the size of
            the image, and drop or add boxes.
        options: those of the command, with underscores; ``data`` and ``model`` must be given.
            ``output`` is by default a new folder in ``runs/``. ``log_with`` also takes trackers
            that derive from accelerate's ``GeneralTracker``.

    Returns:
        The result, in all processes.

    Raises:
        ConfigError: an option is unknown or does not fit.
        DataError: the data set does not fit, with all that is wrong.
        HubError: weights are missing or unreachable.
        TrainError: the run cannot start or go on.
        TransformError: the transform fails, or returns what does not fit; names the image.
        KeyboardInterrupt: the run was interrupted; says what was saved and how to go on.
        Interrupted: SIGTERM or SIGHUP arrived; the run was saved.
    """
    from accelerate.tracking import GeneralTracker

    from sepc_zoo.api.given import gather, options_of_run
    from sepc_zoo.training.resilience.signals import Interrupted
    from sepc_zoo.training.trainer import train as run

    asked: dict[str, Any] = {"finetune": finetune, "config": config, "resume": resume}
    start = StartOptions(**asked)
    callbacks = check_callbacks(callbacks)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    check_names(TrainOptions, given, "sepc_zoo.train")
    trackers: list[GeneralTracker] = []
    if "log_with" in given:
        loggers = given["log_with"]
        loggers = [loggers] if isinstance(loggers, str | GeneralTracker) else list(loggers)
        trackers = [logger for logger in loggers if isinstance(logger, GeneralTracker)]
        given["log_with"] = [logger for logger in loggers if logger not in trackers]
    run_options = options_of_run(gather(given, start), start.resume)
    try:
        metrics = run(run_options, resume is not None, callbacks, transform, trackers)
    except Interrupted as interrupted:
        if interrupted.status != 128 + signal.SIGINT:
            raise
        raise KeyboardInterrupt(f"{interrupted}; in Python resume={run_options.output!r}") from None
    return TrainResult(Path(run_options.output), metrics)


def check_callbacks(given: Any) -> list[Callback]:
    """The callbacks as a list.

    Raises:
        ConfigError: they are no list, or one is no object of ``sepc_zoo.Callback``.
    """
    from sepc_zoo.training.callback import Callback

    callbacks: list[Any] = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(callback, Callback) for callback in callbacks):
        raise ConfigError(
            f"callbacks is {given!r:.80}; it must be a list of objects of classes that derive from "
            "sepc_zoo.Callback"
        )
    return callbacks


def _number(text: str) -> float:
    return int(text) if text.isdecimal() else float(text)
