"""The options of augmentation: random changes of training images."""

import math
from dataclasses import dataclass

from sepc_zoo.config import ConfigError

PROBABILITIES = ("hflip", "vflip", "crop", "mosaic", "mixup", "copy_paste")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images; probabilities are per image."""

    hflip: float = 0.5  # probability of a horizontal flip
    vflip: float = 0.0  # probability of a vertical flip
    color_jitter: bool = False  # photometric distortion
    scale: tuple[float, float] = (1.0, 1.0)  # range of a random factor of the sides
    short_sides: tuple[int, ...] = ()  # multi-scale: pixels, one is drawn instead of the short side
    crop: float = 0.0  # probability of a random crop; boxes stay whose centres lie inside
    mosaic: float = 0.0  # probability of four images in one (YOLOv4)
    mixup: float = 0.0  # probability of a blend of two images (YOLOX)
    copy_paste: float = 0.0  # probability of pasted objects of another image, cut out by their box
    mix_epochs: int | None = None  # epochs with mosaic, mixup and copy-paste, the first; None: all

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, but must lie in 0..1")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ConfigError(f"scale is {self.scale}, but must be 0 < low <= high")
        if any(side < 1 for side in self.short_sides):
            raise ConfigError(f"short_sides is {self.short_sides}, but must be pixels")
        if self.mix_epochs is not None and self.mix_epochs < 0:
            raise ConfigError(f"mix_epochs is {self.mix_epochs}, but must be at least 0")

    @property
    def mixes(self) -> bool:
        """Whether images are combined with others."""
        return bool(self.mosaic or self.mixup or self.copy_paste)

    def factors(self, short: int) -> tuple[float, ...]:
        """Compute the factors of the short side that ``short_sides`` stands for."""
        return tuple(side / short for side in self.short_sides) or (1.0,)

    def largest(self, short: int, long: int) -> tuple[float, float]:
        """Compute the largest short and long side of an image after augmentation."""
        factor = self.scale[1] * max(self.factors(short))
        return short * factor, long * factor
