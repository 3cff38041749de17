"""What goes wrong during a run: told, counted, and survived up to a limit."""

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from sepc_zoo.data import Batch
from sepc_zoo.engine.log import CsvFile, Log
from sepc_zoo.errors import UserError
from sepc_zoo.files import write_atomically, write_json

SKIPPED_FOLDER, FAULTS_FILE = "skipped", "faults.csv"
MOST_SKIPPED_IN_A_ROW = 10


class FaultError(UserError, RuntimeError):
    """Too much went wrong for the run to go on; the message says what may help."""


class Faults:
    """The faults of a run, each a row of ``faults.csv``.

    Args:
        most: images that can no longer be read, and workers that die, before the run ends.
    """

    def __init__(self, output: Path, most: int, log: Log) -> None:
        self.output, self.most, self.log = output, most, log
        self.file = CsvFile(output / FAULTS_FILE)
        self.step = 0
        self.unread: list[str] = []  # of this process, not told yet
        self.unreadable: set[str] = set()  # of all processes
        self.dead_workers = 0
        self.skipped = 0

    def look_at(self, batches: Sequence[Batch]) -> None:
        """Note the images of this process that could not be read."""
        told = self.unreadable.union(self.unread)
        for batch in batches:
            for target in batch.targets:
                self.unread += [m for m in target.get("unreadable", ()) if m not in told]

    def share_unread(self) -> None:
        """Tell the images that any process could not read. To be called by all processes.

        Raises:
            FaultError: there are too many of them.
        """
        new = sorted(set(gather_object(self.unread)) - self.unreadable)
        self.unread = []
        self.unreadable.update(new)
        for message in new:
            self._tell("unreadable image", message)
        if len(self.unreadable) > self.most:
            raise FaultError(
                f"{len(self.unreadable)} images can no longer be read, the last: {new[-1]}. Is the "
                "data set still there?"
            )

    def worker_died(self, message: str) -> None:
        """A worker that reads images is gone.

        Raises:
            FaultError: it happens too often.
        """
        self.dead_workers += 1
        self._tell("worker died", message)
        if self.dead_workers > self.most:
            raise FaultError(
                f"{self.dead_workers} workers died, the last: {message}. Fewer --workers need less "
                "memory"
            )

    def skip(
        self,
        batches: Sequence[Batch],
        losses: dict[str, Tensor],
        in_a_row: int,
        picture: Image.Image,
    ) -> None:
        """A step is skipped, because loss or gradient are not finite; its batches are kept.

        Args:
            picture: of the batches.

        Raises:
            FaultError: it is one too many in a row.
        """
        self.skipped += 1
        folder = self.output / SKIPPED_FOLDER / f"step_{self.step:06d}"
        rank = PartialState().process_index
        for i, batch in enumerate(batches):
            keep_batch(batch, folder / f"process_{rank}_batch_{i}")
        write_atomically(folder / f"process_{rank}.png", picture.save)
        values = {name: value.item() for name, value in losses.items()}
        images = gather_object([t["image_id"] for batch in batches for t in batch.targets])
        text = f"loss or gradient are not finite: {values}; images {images} are kept in {folder}"
        self._tell("step skipped", text)
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise FaultError(
                f"{in_a_row} steps in a row were skipped, the last: {text}. Try a lower --lr or "
                "--clip-grad"
            )

    def summary(self) -> str:
        """What was survived, "" where nothing was."""
        counts = {
            "images that can no longer be read": len(self.unreadable),
            "workers that died": self.dead_workers,
            "steps skipped": self.skipped,
        }
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def _tell(self, kind: str, text: str) -> None:
        self.log.say(f"step {self.step}: {kind}: {text}")
        self.file.append({"step": self.step, "kind": kind, "text": text})


def keep_batch(batch: Batch, path: Path) -> None:
    """Write a batch as the network got it to ``path`` with .safetensors, and its images to .json.

    The tensors are ``images (N, 3, H, W)`` and for each image ``boxes.0 (G, 4)``, ``labels.0``, …
    """
    tensors = {"images": batch.images.cpu().contiguous()}
    for i, target in enumerate(batch.targets):
        for name in ("boxes", "labels"):
            tensors[f"{name}.{i}"] = target[name].cpu().contiguous()
    content = save(tensors)
    write_atomically(path.with_suffix(".safetensors"), lambda file: file.write_bytes(content))
    images = [target["image_id"] for target in batch.targets]
    write_json(path.with_suffix(".json"), {"image_ids": images, "sizes": batch.image_sizes})


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Whether all scalars are finite: a tensor, so that nobody waits for it before it is needed."""
    return torch.stack([value.detach().float() for value in values]).isfinite().all()
