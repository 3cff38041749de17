"""Configurations: frozen dataclasses with units, and their JSON in timm's layout.

A ``DetectorConfig`` says all there is to know of a model but its weights; a model folder built from
it needs no table of names, so that a registered row of one user loads on the machine of another.
"""

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union

from sepc_zoo.errors import UserError

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NAME = re.compile(r"\w[\w.-]*")
# Of timm.create_model, which would load other files or reach the network, and of our own Backbone.
NOT_BACKBONE_KWARGS = {
    *("self", "name"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
}
MOST_KWARGS, MOST_NUMBER = 2000, 16384
STRIDES = (8, 16, 32, 64, 128)  # of P3 ... P7, in pixels


class ConfigError(UserError, ValueError):
    """A configuration that no model can be built from; the message names the entry."""


class UnknownEntriesError(ConfigError):
    """A configuration with entries that this version does not know."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{message:.1000}")  # which may have a number of 4,000 digits in it


@dataclass(frozen=True)
class AnchorConfig:
    """Boxes laid on every cell of a level (RetinaNet, section 4)."""

    base_scale: float = 4.0  # side of the smallest square anchor, in strides
    octaves: int = 3  # sizes per octave
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width

    def __post_init__(self) -> None:
        _require(0 < self.base_scale <= 64, f"anchors.base_scale {self.base_scale} not in (0, 64]")
        _require(1 <= self.octaves <= 16, f"anchors.octaves {self.octaves} not in 1..16")
        _require(1 <= len(self.ratios) <= 16, "anchors.ratios needs 1 to 16 entries")
        _require(all(0 < ratio <= 64 for ratio in self.ratios), "anchors.ratios not in (0, 64]")

    @property
    def per_cell(self) -> int:
        return self.octaves * len(self.ratios)


@dataclass(frozen=True)
class NeckConfig:
    """The scale-equalizing pyramid convolution (SEPC, section 3)."""

    blocks: int = 4  # pyramid convolutions, one after the other
    norm: bool = False  # integrated batch norm over all levels
    head_deform: bool = False  # deform the last convolution of each branch
    pconv_deform: bool = False  # deform the pyramid convolutions
    padding: int = 1  # of the last convolutions; the authors' weights need 0

    def __post_init__(self) -> None:
        _require(1 <= self.blocks <= 32, f"neck.blocks {self.blocks} not in 1..32")
        _require(self.padding in (0, 1), f"neck.padding {self.padding} is neither 0 nor 1")


@dataclass(frozen=True)
class PostprocessConfig:
    """From predictions to detections."""

    score_threshold: float = 0.05
    candidates_per_level: int = 1000  # anchors that reach non-maximum suppression
    iou_threshold: float = 0.5
    max_detections: int = 100  # per image

    def __post_init__(self) -> None:
        _require(0 <= self.score_threshold <= 1, "postprocess.score_threshold not in 0..1")
        _require(0 <= self.iou_threshold <= 1, "postprocess.iou_threshold not in 0..1")
        _require(
            1 <= self.candidates_per_level <= 10**6,
            "postprocess.candidates_per_level not in 1..1e6",
        )
        _require(1 <= self.max_detections <= 10**5, "postprocess.max_detections not in 1..1e5")


@dataclass(frozen=True)
class WeightsConfig:
    """What the weights of a model expect, and where they come from."""

    tag: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN  # of RGB in 0..1
    std: tuple[float, float, float] = IMAGENET_STD
    image_size: tuple[int, int] = (800, 1333)  # short side, long side at most; pixels
    pad_multiple: int = 32  # both sides of a batch, pixels
    antialias: bool = True  # when a photo is made smaller; the authors resize without
    dataset: str = ""  # that the weights were trained on
    license: str = ""
    source: str = ""  # address of the published checkpoint
    authors_ap: float | None = None  # COCO val2017, as the authors published it

    def __post_init__(self) -> None:
        short, long = self.image_size
        _require(1 <= short <= long <= 16384, f"image_size {self.image_size}: 1 <= short <= long")
        _require(1 <= self.pad_multiple <= 4096, f"pad_multiple {self.pad_multiple} not in 1..4096")
        _require(all(map(math.isfinite, self.mean)), f"mean {self.mean} must be finite")
        _require(
            all(0 < value < math.inf for value in self.std), f"std {self.std} must be positive"
        )
        _require(
            self.authors_ap is None or math.isfinite(self.authors_ap),
            f"authors_ap {self.authors_ap} must be finite",
        )


def without_credit(weights: WeightsConfig) -> WeightsConfig:
    """The input that weights expect, without the claim to be the published ones."""
    return dataclasses.replace(weights, tag="", dataset="", license="", source="", authors_ap=None)


@dataclass(frozen=True)
class DetectorConfig:
    """All there is to know of a detector but its weights."""

    architecture: str  # the name it was built by
    method: str
    backbone: str  # timm's name
    neck: NeckConfig | None  # None: the FPN alone
    num_classes: int
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # of the data set trained on, by label
    channels: int = 256  # of every level between FPN and head
    stacked_convs: int = 0  # of each branch of the head, before its last
    anchors: AnchorConfig = AnchorConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    inclusive_boxes: bool = False  # the authors' x2, y2 are the last pixel inside the box
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)  # for timm.create_model
    method_kwargs: dict[str, Any] = field(default_factory=dict)  # hyperparameters of the losses
    weights: WeightsConfig = WeightsConfig()

    def __post_init__(self) -> None:
        _require(1 <= self.num_classes <= 10**5, f"num_classes {self.num_classes} not in 1..1e5")
        for entry in ("architecture", "backbone"):  # names, and no paths or addresses
            value = getattr(self, entry)
            _require(
                NAME.fullmatch(value) is not None, f"{entry} {value!r:.80} is no name of a model"
            )
        outputs = self.num_classes * self.anchors.per_cell
        _require(outputs <= 10**6, f"{outputs} classes times anchors of a cell; 1e6 at most")
        _require(1 <= self.channels <= 8192, f"channels {self.channels} not in 1..8192")
        _require(0 <= self.stacked_convs <= 32, f"stacked_convs {self.stacked_convs} not in 0..32")
        _check_kwargs(self.backbone_kwargs, "backbone_kwargs")
        _check_kwargs(self.method_kwargs, "method_kwargs")
        refused = sorted(NOT_BACKBONE_KWARGS & set(self.backbone_kwargs))
        _require(not refused, f"backbone_kwargs {refused} say where weights are, or are no model's")
        for name in ("label_names", "category_ids"):
            values = getattr(self, name)
            _require(
                len(values) == self.num_classes,
                f"{name} has {len(values)} entries for num_classes {self.num_classes}",
            )
            _require(len(set(values)) == len(values), f"{name} has duplicates")


# config.json keeps these beside each other at the top, as timm does; all else is in model_args.
_TOP = ("architecture", "num_classes", "label_names", "category_ids")


def _check_kwargs(kwargs: dict[str, Any], where: str) -> None:
    """Plain data of a sane size: what comes from a stranger's file goes to timm.create_model."""
    try:
        text = json.dumps(kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    _require(len(text) <= MOST_KWARGS, f"{where} has {len(text)} characters, {MOST_KWARGS} at most")
    sane = all(abs(number) <= MOST_NUMBER for number in _numbers(kwargs))
    _require(sane, f"{where} has numbers over {MOST_NUMBER}")


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested plain data."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def config_to_json(config: DetectorConfig) -> dict[str, Any]:
    """The content of ``config.json`` for a model: timm's layout, plain JSON types."""
    entries = dataclasses.asdict(config)
    weights = entries.pop("weights")
    top = {name: entries.pop(name) for name in _TOP}
    return top | {"model_args": entries, "pretrained_cfg": weights}


def config_from_json(content: Any) -> DetectorConfig:
    """The inverse of ``config_to_json``.

    Raises:
        ConfigError: an entry is missing, unknown, of the wrong type or out of range.
    """
    content = _expect(dict, content, "config")
    _refuse_unknown(set(content) - {*_TOP, "model_args", "pretrained_cfg"}, "config")
    entries = {name: content[name] for name in _TOP if name in content}
    model_args = _expect(dict, content.get("model_args", {}), "model_args")
    weights = from_plain(WeightsConfig, content.get("pretrained_cfg", {}), "pretrained_cfg")
    misplaced = sorted({*_TOP, "weights"} & set(model_args))
    _require(not misplaced, f"model_args: unknown entries {misplaced}")
    return from_plain(DetectorConfig, entries | model_args | {"weights": weights}, "config")


def override(config: T, changes: dict[str, Any], where: str = "") -> T:
    """``config`` with ``changes``; a dict given for a nested config changes its entries only.

    Raises:
        ConfigError: a change names no entry, or its value does not fit.
    """
    hints = typing.get_type_hints(type(config))
    unknown = sorted(set(changes) - set(hints))
    _require(not unknown, f"{where or 'config'} has no {unknown}; it has {sorted(hints)}")
    values = {}
    for name, change in changes.items():
        current = getattr(config, name)
        if is_dataclass(current) and isinstance(change, dict):
            values[name] = override(current, change, f"{where}{name}.")
        else:
            values[name] = _convert(hints[name], change, f"{where}{name}")
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def from_plain(cls: type[T], content: Any, where: str) -> T:
    """A dataclass from JSON types, each entry checked against its annotation."""
    content = _expect(dict, content, where)
    all_hints = typing.get_type_hints(cls)
    hints = {f.name: all_hints[f.name] for f in fields(cls)}  # type: ignore[arg-type]
    _refuse_unknown(set(content) - set(hints), where)
    missing = [f.name for f in fields(cls) if f.name not in content and _has_no_default(f)]  # type: ignore[arg-type]
    _require(not missing, f"{where}: missing entries {missing}")
    return cls(**{name: _convert(hints[name], v, f"{where}.{name}") for name, v in content.items()})


def _refuse_unknown(names: set[Any], where: str) -> None:
    if names:
        raise UnknownEntriesError(f"{where}: unknown entries {sorted(names, key=str)!r:.300}")


def _has_no_default(entry: dataclasses.Field) -> bool:
    return entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):  # X | None is the only union used
        return None if value is None else _convert(args[0], value, where)
    if is_dataclass(hint):
        return value if isinstance(value, hint) else from_plain(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        return _convert_tuple(args, value, where)
    return _expect(origin or hint, value, where)


def _convert_tuple(args: tuple, value: Any, where: str) -> tuple:
    _require(isinstance(value, (list, tuple)), f"{where}: expected a list, got {value!r:.80}")
    if args[-1] is Ellipsis:
        args = (args[0],) * len(value)
    _require(len(value) == len(args), f"{where}: expected {len(args)} values, got {len(value)}")
    pairs = zip(args, value, strict=True)
    return tuple(_convert(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs))


def _expect(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits, f"{where}: expected {kind.__name__}, got {value!r:.80}")
    return value
