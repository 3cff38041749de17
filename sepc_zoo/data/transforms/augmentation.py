"""Options of the augmentation of training images."""

from dataclasses import dataclass

from sepc_zoo.options import OptionError, Options, option


@dataclass(frozen=True, kw_only=True)
class Augmentation(Options):
    """Augmentation of the training images.

    Probabilities are per image; all but the horizontal flip is off by default. None leaves an
    option to the recipe of a run, and is off elsewhere.
    """

    hflip: float = option(0.5, "probability of a horizontal flip", ge=0, le=1)
    vflip: float = option(0.0, "probability of a vertical flip", ge=0, le=1)
    color_jitter: bool | None = option(
        None, "change brightness, contrast, saturation and hue (default: the recipe's)"
    )
    hue: float = option(0.0, "largest shift of the hue, in colour circles (HSV)", ge=0, le=0.5)
    saturation: float = option(0.0, "largest change of the saturation, relative (HSV)", ge=0, le=1)
    brightness: float = option(0.0, "largest change of the brightness, relative (HSV)", ge=0, le=1)
    blur: float = option(0.0, "probability of a Gaussian blur of 0.1 to 2 pixels", ge=0, le=1)
    jpeg: float = option(0.0, "probability of JPEG compression of quality 30 to 95", ge=0, le=1)
    degrees: float = option(0.0, "largest rotation, in degrees", ge=0, le=180)
    shear: float = option(0.0, "largest shear along each axis, in degrees", ge=0, le=30)
    translate: float = option(0.0, "largest shift, as a fraction of width and height", ge=0, le=0.5)
    perspective: float = option(
        0.0, "largest change of scale from middle to border, relative", ge=0, le=0.4
    )
    scale: tuple[float, float] | None = option(
        None,
        "range of the random factor on the image size (default: the recipe's)",
        gt=0,
        metavar=("LOW", "HIGH"),
    )
    short_sides: tuple[int, ...] = option(
        (),
        "short sides in pixels to draw from, for multi-scale training (default: image size)",
        ge=1,
        metavar="PIXELS",
    )
    crop: float = option(
        0.0, "probability of a random crop; boxes with their centres inside stay", ge=0, le=1
    )
    mosaic: float | None = option(
        None, "probability of a mosaic of four images (YOLOv4; default: the recipe's)", ge=0, le=1
    )
    mixup: float = option(0.0, "probability of blending two images (YOLOX)", ge=0, le=1)
    copy_paste: float = option(
        0.0, "probability of pasting objects of another image with their boxes", ge=0, le=1
    )
    mix_epochs: int | None = option(
        None,
        "number of first epochs with mosaic, mixup and copy-paste (default: the recipe's, or all)",
        ge=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale_range
        if low > high:
            raise OptionError("scale", f"is {self.scale}; it must be 0 < low <= high")

    @property
    def warps(self) -> bool:
        """Whether images are rotated, sheared, shifted or seen in perspective."""
        return bool(self.degrees or self.shear or self.translate or self.perspective)

    @property
    def scale_range(self) -> tuple[float, float]:
        """Range of the random factor on the image size."""
        return self.scale or (1.0, 1.0)

    @property
    def mixes(self) -> bool:
        return bool(self.mosaic or self.mixup or self.copy_paste)

    def factors(self, short: int) -> tuple[float, ...]:
        """Factors of the short side that multi-scale training draws from, before ``scale``."""
        return tuple(side / short for side in self.short_sides) or (1.0,)

    def largest(self, short: int, long: int) -> tuple[float, float]:
        """Upper limits of the short and the long side of an augmented image, in pixels."""
        factor = self.scale_range[1] * max(self.factors(short))
        return short * factor, long * factor
