"""What is done to training photos, so that a model never sees the same one twice."""

import math
from dataclasses import dataclass

from sepc_zoo.config import ConfigError

PROBABILITIES = ("hflip", "vflip", "crop", "mosaic", "mixup", "copy_paste")


@dataclass(frozen=True)
class Augmentation:
    """Probabilities are per photo; all but the mirror image is off unless asked for."""

    hflip: float = 0.5  # probability of a mirror image
    vflip: float = 0.0  # of one upside down
    color_jitter: bool = False  # photometric distortion
    scale: tuple[float, float] = (1.0, 1.0)  # the sides are drawn between these, times their size
    short_sides: tuple[int, ...] = ()  # multi-scale: pixels, one is drawn instead of the short side
    crop: float = 0.0  # probability of a part that keeps the boxes whose centres lie in it
    mosaic: float = 0.0  # of four photos in one (YOLOv4)
    mixup: float = 0.0  # of two photos on top of each other (YOLOX)
    copy_paste: float = 0.0  # of objects of another photo, with the box around them
    mix_epochs: int | None = None  # only the first epochs mix photos; None: all

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
        """Whether photos are mixed with others."""
        return bool(self.mosaic or self.mixup or self.copy_paste)

    def factors(self, short: int) -> tuple[float, ...]:
        """What the short side is multiplied with, before ``scale``."""
        return tuple(side / short for side in self.short_sides) or (1.0,)

    def largest(self, short: int, long: int) -> tuple[float, float]:
        """What the sides of a photo are at most."""
        most = self.scale[1] * max(self.factors(short))
        return short * most, long * most
