"""What goes wrong during a run: told, counted, and survived up to a limit."""

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
from sepc_zoo.training.logging import CsvFile, Log

SKIPPED_FOLDER, FAULTS_FILE = "skipped", "faults.csv"
UNREADABLE, DEAD_WORKER, SKIPPED = "unreadable image", "dead worker", "skipped step"  # kinds
MOST_SKIPPED_IN_A_ROW = 10
MOST_KEPT = 20  # skipped steps whose batches are kept, so that these do not fill the disk
MOST_DEAD_AT_ONCE = 10  # workers that die before a step is made


class FaultError(UserError, RuntimeError):
    """Too much went wrong for the run to go on; the message says what may help."""


class Faults:
    """The faults of a run, each a row of ``faults.csv``.

    Args:
        most: images that can no longer be read, and workers that die, before the run must end.

    Attributes:
        met: kind and text of what this process has met and not shared yet.
        too_much: why the run must end, "" where it need not; the same in all processes.
    """

    def __init__(self, output: Path, most: int, log: Log) -> None:
        self.output, self.most, self.log = output, most, log
        self.file = CsvFile(output / FAULTS_FILE)
        self.step = 0
        self.met: list[tuple[str, str]] = []
        self.too_much = ""
        self.unreadable: set[str] = set()  # these count what all processes met since the start
        self.dead_workers = 0
        self.skipped = 0

    def look_at(self, unreadable: Iterable[str]) -> None:
        """Note what is said of images that could not be read."""
        self.met += [(UNREADABLE, text) for text in unreadable if text not in self.unreadable]

    def worker_died(self, text: str) -> None:
        """Note that a worker is gone, which read images for this process.

        Raises:
            FaultError: those in its place die too, so that no step can be made.
        """
        self.met.append((DEAD_WORKER, text))
        if sum(kind == DEAD_WORKER for kind, _ in self.met) > MOST_DEAD_AT_ONCE:
            self._count(self.met)  # the other processes wait elsewhere
            raise FaultError(f"new workers die as soon as they are there, the last: {text}")

    def share(self) -> None:
        """Tell and count what any process has met. To be called by all processes."""
        met = gather_object(self.met)
        self.met = []
        self._count(met)

    def skip(
        self,
        batches: Sequence[Batch],
        losses: dict[str, Tensor],
        in_a_row: int,
        draw: Callable[[], Image.Image],
    ) -> None:
        """Tell of a step that was skipped because loss or gradient are not finite.

        Its batches are kept, with a picture of them. To be called by all processes.
        """
        self.skipped += 1
        ids = gather_object([target["image_id"] for b in batches for target in b.targets])
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
        text = f"loss or gradient is not finite ({values}) with images {ids}"
        if self.skipped <= MOST_KEPT:
            folder = self.output / SKIPPED_FOLDER / f"step_{self.step:06d}"
            rank = PartialState().process_index
            for i, batch in enumerate(batches):
                keep_batch(batch, folder / f"process_{rank}_batch_{i}")
            write_atomically(folder / f"process_{rank}.png", draw().save)
            text += f", kept in {folder}"
        self._tell(SKIPPED, text)
        if in_a_row >= MOST_SKIPPED_IN_A_ROW:
            self.too_much = (
                f"{in_a_row} steps in a row were skipped, the last: {text}. Try a lower --lr or "
                "--clip-grad in a new run"
            )

    def stop_if_too_much(self) -> None:
        """
        Raises:
            FaultError: the run must end.
        """
        if self.too_much:
            raise FaultError(self.too_much)

    def summary(self) -> str:
        """What the run has survived, also before it was resumed; "" where nothing was."""
        told = {(row["kind"], row["text"]) for row in self.file.read()}
        counts = Counter(kind for kind, _ in told)
        return ", ".join(f"{kind}: {counts[kind]}" for kind in sorted(counts))

    def _count(self, met: Sequence[tuple[str, str]]) -> None:
        for kind, text in sorted(set(met)):
            self._tell(kind, text)
            if kind == UNREADABLE:
                self.unreadable.add(text)
            else:
                self.dead_workers += 1
        last = met[-1][1]
        if len(self.unreadable) > self.most:
            self.too_much = (
                f"images that can no longer be read: {len(self.unreadable)}, the last: {last}. Is "
                "the data set still there?"
            )
        elif self.dead_workers > self.most:
            self.too_much = (
                f"workers that died: {self.dead_workers}, the last: {last}. Fewer --workers need "
                "less memory"
            )

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


def any_not_finite(values: Sequence[Tensor]) -> Tensor:
    """1 where any of the scalars is not finite, else 0: ``(1,)``, for which nobody waits yet."""
    together = torch.stack([value.detach().float() for value in values])
    return (~together.isfinite()).any(dim=0, keepdim=True).float()
