"""Options that commands and functions share beside those of a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.training.options import PrecisionOptions, SourceOptions, WorkerOptions

if TYPE_CHECKING:
    from sepc_zoo.inference.tta import Views


@dataclass(frozen=True, kw_only=True)
class StartOptions(Options):
    """Start and resume."""

    finetune: str | None = option(
        None,
        "trained weights to start from: published ones by name, a model folder or hf-hub:org/repo",
        metavar="MODEL",
        exclusive="model",
    )
    config: str | None = option(
        None, "YAML file of options, such as recipes/r50_1x.yaml; flags win", metavar="FILE"
    )
    resume: str | None = option(
        None, "run folder to go on with; some options may change, such as --epochs", metavar="RUN"
    )


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(WorkerOptions):
    """Hardware and speed."""

    batch_size: int = option(4, "images per process and batch", ge=1)


@dataclass(frozen=True, kw_only=True)
class DetectOptions(Options):
    """Test-time augmentation, tiles and suppression."""

    tta_flip: bool = option(False, "also detect in the mirror image of each image")
    tta_scales: tuple[float, ...] = option(
        (1.0,), "detect in these sizes, as factors of the model's image size", ge=0.1, le=10
    )
    tta_fusion: Literal["nms", "wbf"] | None = option(
        None, "merge views by NMS or weighted boxes fusion (default: the model's, usually nms)"
    )
    tile: int | None = option(
        None, "also detect in overlapping windows of N pixels, such as 640, of larger images", ge=32
    )
    overlap: float = option(
        0.2, "minimum overlap of neighbouring windows, as a fraction of their side", ge=0, le=0.9
    )
    soft_nms: Literal["none", "linear", "gaussian"] | None = option(
        None, "lower scores of overlapping boxes by soft-NMS (default: the model's, usually none)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tta_fusion and not self.tta_flip and len(self.tta_scales) == 1:
            text = "merges views, but there is one: add --tta-flip or more --tta-scales"
            raise OptionError("tta_fusion", text)
        if self.tile is None and self.overlap != DetectOptions.overlap:
            raise OptionError("overlap", "is that of tiles, but there are none: add --tile")

    def views(self) -> "Views":
        """The views of an image that these options ask for."""
        from sepc_zoo.inference.tiles import Tiles
        from sepc_zoo.inference.tta import Views

        tiles = None if self.tile is None else Tiles(self.tile, self.overlap)
        return Views(self.tta_flip, self.tta_scales, tiles)


@dataclass(frozen=True, kw_only=True)
class SplitOptions(SourceOptions, PrecisionOptions, LoaderOptions, DetectOptions):
    """Data."""

    split: str = option("val", "name of the split", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(SplitOptions):
    """Validation."""

    no_report: bool = option(False, "do not write report.html, and do not analyse errors")
    voc_ap: bool = option(False, "also compute Pascal VOC's AP (area and 11 points, IoU 0.5)")
    bootstrap: int = option(0, "compute 95% intervals of AP from N resamples, such as 1000", ge=0)
    seed: int = option(0, "seed of the resamples", ge=0)
    frequency_split: str | None = option(
        None,
        "also compute LVIS's AP of rare (at most 10 images), common (at most 100) and frequent "
        "classes, counted in this split, such as train",
        metavar="NAME",
    )
