"""What a model says of a batch, before it is turned into boxes."""

from typing import NamedTuple

from torch import Tensor


class Predictions(NamedTuple):
    """Raw predictions for N images, A anchors over all levels and K classes.

    A runs over levels, then rows, columns and the anchors of a cell.
    """

    logits: Tensor  # N, A, K
    deltas: Tensor  # N, A, 4, in the coding of the method
    sizes: tuple[tuple[int, int], ...]  # height and width of each level, in cells

    @property
    def level_lengths(self) -> list[int]:
        """Anchors of each level; their sum is A."""
        cells = [height * width for height, width in self.sizes]
        per_cell = self.logits.shape[1] // sum(cells)
        return [count * per_cell for count in cells]
