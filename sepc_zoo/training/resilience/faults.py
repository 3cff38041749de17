"""Faults that a run survives up to a limit: reported, counted, and kept in a table."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from sepc_zoo.data import Batch
from sepc_zoo.errors import UserError
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.training.csv_file import CsvFile
from sepc_zoo.training.logging import Log

SKIPPED_FOLDER, FAULTS_FILE = "skipped", "faults.csv"
UNREADABLE, DEAD_WORKER, SKIPPED = "unreadable image", "dead worker", "skipped step"  # kinds
ENDINGS = {  # what a run that meets too many of a kind says when it ends
    UNREADABLE: ("images that can no longer be read", "Is the data set still there?"),
    DEAD_WORKER: ("workers that died", "Fewer --workers need less memory"),
}
MAX_SKIPPED_IN_A_ROW = 10
MAX_KEPT_STEPS = 20  # skipped steps whose batches are written to the disk
MAX_DEAD_AT_ONCE = 10  # workers that die before a step is made


class FaultError(UserError, RuntimeError):
    """The run cannot go on because of too many faults; the message says what may help."""


class Faults:
    """The faults of a run, each a row of ``faults.csv``.

    Args:
        max_faults: number of unreadable images, and of dead workers, that the run survives.

    Attributes:
        new: kind and text of the faults of this process that the others do not know yet.
        fatal: why the run must end, or ""; the same in all processes.
    """

    def __init__(self, output: Path, max_faults: int, log: Log) -> None:
        self.output, self.max_faults, self.log = output, max_faults, log
        self.file = CsvFile(output / FAULTS_FILE)
        self.step = 0
        self.new: list[tuple[str, str]] = []
        self.fatal = ""
        self.counts: Counter[str] = Counter()  # number of faults of each kind, over all processes
        self.unreadable: set[str] = set()  # their texts

    def add_unreadable(self, unreadable: Iterable[str]) -> None:
        """Note the messages of images that could not be read."""
        self.new += [(UNREADABLE, text) for text in unreadable if text not in self.unreadable]

    def add_dead_worker(self, text: str) -> None:
        """Note that a worker of this process died."""
        self.new.append((DEAD_WORKER, text))
        if sum(kind == DEAD_WORKER for kind, _ in self.new) > MAX_DEAD_AT_ONCE:
            self._count(self.new)  # without the other processes, which wait elsewhere
            raise FaultError(f"new workers die as soon as they start, the last: {text}")

    def share(self) -> None:
        """Report and count the new faults of all processes. Must be called by all of them."""
        new = gather_object(self.new)
        self.new = []
        self._count(new)

    def skip_step(
        self,
        batches: Sequence[Batch],
        losses: dict[str, Tensor],
        in_a_row: int,
        draw: Callable[[], Image.Image],
    ) -> None:
        """Report a step that was skipped, as its loss or gradient is not finite.

        Its batches are written to the disk, with a picture. Must be called by all processes.
        """
        ids = gather_object([target["image_id"] for b in batches for target in b.targets])
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        text = f"loss or gradient is not finite ({values}) with images {ids}"
        if self.counts[SKIPPED] < MAX_KEPT_STEPS:
            folder = self.output / SKIPPED_FOLDER / f"step_{self.step:06d}"
            rank = PartialState().process_index
            for i, batch in enumerate(batches):
                write_batch(batch, folder / f"process_{rank}_batch_{i}")
            write_atomically(folder / f"process_{rank}.png", draw().save)
            text += f", kept in {folder}"
        self._report(SKIPPED, text)
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            self.fatal = (
                f"{in_a_row} steps in a row were skipped, the last: {text}. Try a lower --lr or "
                "--clip-grad in a new run"
            )

    def summary(self) -> str:
        """Count the faults, also those before the run was resumed; "" where there are none."""
        faults = {(row["kind"], row["text"]) for row in self.file.read()}
        counts = Counter(kind for kind, _ in faults)
        return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))

    def _count(self, new: Sequence[tuple[str, str]]) -> None:
        for kind, text in sorted(set(new)):
            self._report(kind, text)
            if kind == UNREADABLE:
                self.unreadable.add(text)
            if self.counts[kind] > self.max_faults:
                what, advice = ENDINGS[kind]
                self.fatal = f"{what}: {self.counts[kind]}, the last: {text}. {advice}"

    def _report(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.log.say(f"step {self.step}: {kind}: {text}")
        self.file.append({"step": self.step, "kind": kind, "text": text})


def write_batch(batch: Batch, path: Path) -> None:
    """Write a batch: tensors to ``path.safetensors``, ids and sizes of its images to ``path.json``.

    The tensors are ``images (N, 3, H, W)`` as the network got them, and for each image
    ``boxes.0 (G, 4)``, ``labels.0 (G,)``, …
    """
    tensors = {"images": batch.images}
    for i, target in enumerate(batch.targets):
        tensors |= {f"{name}.{i}": target[name] for name in ("boxes", "labels")}
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_atomically(path.with_suffix(".safetensors"), lambda file: file.write_bytes(content))
    images = [target["image_id"] for target in batch.targets]
    write_json(path.with_suffix(".json"), {"image_ids": images, "sizes": batch.image_sizes})


def any_not_finite(values: Sequence[Tensor]) -> Tensor:
    """Return ``(1,)``: 1 where any of the scalars is not finite, else 0, still on their device."""
    together = torch.stack([value.detach().float() for value in values])
    return (~together.isfinite()).any(dim=0, keepdim=True).float()
