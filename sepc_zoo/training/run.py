"""What the training loop works with."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from timm.scheduler.scheduler import Scheduler
from torch import nn, optim
from torch.amp.grad_scaler import GradScaler

from sepc_zoo.data import Annotations
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.accelerator import RunAccelerator
from sepc_zoo.training.callbacks import Callback
from sepc_zoo.training.checkpoint import Progress, Stateful
from sepc_zoo.training.logging import Log
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.recipes import Recipe
from sepc_zoo.training.resilience.async_scalars import StepResult
from sepc_zoo.training.resilience.faults import Faults
from sepc_zoo.training.resilience.signals import Interrupt


@dataclass
class Run:
    """A training run: what it was asked for, its parts, and how far it has come."""

    options: TrainOptions
    recipe: Recipe
    output: Path

    accelerator: RunAccelerator
    detector: Detector
    model: nn.Module  # the detector, wrapped where there are several processes
    evaluated: Detector  # the detector, or the moving average of its weights
    optimizer: optim.Optimizer
    scheduler: Scheduler
    scaler: GradScaler

    train_data: Annotations
    val_data: Annotations
    train_loader: ResilientLoader
    val_loader: ResilientLoader

    steps_per_epoch: int
    num_steps: int
    num_epochs: int

    progress: Progress
    log: Log
    faults: Faults
    interrupt: Interrupt
    callbacks: Sequence[Callback]
    in_flight: deque[StepResult] = field(default_factory=deque)  # steps not yet read by the host
    saved_step: int | None = None

    def stateful_parts(self) -> dict[str, Stateful]:
        """Collect what must be saved so that the run can be resumed."""
        parts: dict[str, Stateful] = {
            "model": self.detector,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "progress": self.progress,
        }
        stateful = [callback for callback in self.callbacks if isinstance(callback, Stateful)]
        return parts | {type(callback).__name__: callback for callback in stateful}
