"""Configurations: frozen structs with units, and their JSON in timm's layout.

A ``DetectorConfig`` describes a model completely except for its weights: a model folder needs no
table of names. Methods and necks are open unions: their ``type`` entry selects the class, and
``register_method`` and ``register_neck`` add classes. All other entries are closed.
"""

import json
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from sepc_zoo.errors import ConfigError

T = TypeVar("T")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NAME = re.compile(r"\w[\w.-]*")
# Arguments of timm.create_model that Backbone sets, and those that load files or use the network.
REFUSED_BACKBONE_KWARGS = {
    *("self", "name", "model_name", "features_only"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
}
MAX_KWARGS_LENGTH, MAX_NUMBER = 2000, 16384

Fraction = Annotated[float, Meta(ge=0, le=1)]
NonNegative = Annotated[float, Meta(ge=0, le=64)]
Finite = Annotated[float, Meta(ge=-1e9, le=1e9)]
FinitePositive = Annotated[float, Meta(gt=0, le=1e9)]
PerChannel = Meta(min_length=1, max_length=1024)
Positive = Annotated[float, Meta(gt=0, le=64)]


class UnknownEntriesError(ConfigError):
    """A configuration with entries that this version does not know."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(f"{message:.1000}")


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all configs: immutable, and strict when read."""


class MethodConfig:
    """Marks the hyperparameters of a method; ``methods.Method`` is the base class to derive from.

    Attributes:
        detector: the class that it trains, or its address ``"module:name"``.
        head: type of that detector's head.
        defaults: entries of ``DetectorConfig`` that new models of the method have.
        lacks: entries of other methods that this one lacks, with the reason, for error messages.
    """

    detector: ClassVar[Any] = "sepc_zoo.models.dense:DenseDetector"
    head: ClassVar[str] = "dense"
    defaults: ClassVar[Mapping[str, Any]] = {}
    lacks: ClassVar[Mapping[str, str]] = {}

    @property
    def name(self) -> str:
        return tag_of(self)

    def check(self, config: "DetectorConfig") -> None:
        """Refuse a config whose head or coder the method cannot train.

        Raises:
            ConfigError: names the entry and what it must be.
        """

    @classmethod
    def fit_neck(cls, neck: "NeckConfig") -> "NeckConfig | None":
        """The neck of new models of this method; None if the method cannot use the neck."""
        return neck


class NeckConfig:
    """Marks the entries of a neck; derive from ``NeckEntry`` to add one.

    Attributes:
        module: the ``nn.Module`` class, or its address ``"module:name"``. It is built with the
            number of channels and this config, and maps a pyramid to one pyramid for classes and
            one for boxes.
        head_convs: number of convolutions in each branch of a new head behind this neck.
        cropped_cells: number of cells that the neck cuts off at each border of a map.
    """

    module: ClassVar[Any]
    head_convs: ClassVar[int] = 4

    @property
    def cropped_cells(self) -> int:
        return 0

    @property
    def name(self) -> str:
        return tag_of(self)


class NeckEntry(Entry, NeckConfig, frozen=True):
    """Base class of the neck configs."""


class PlainNeck(NeckEntry, frozen=True, tag="fpn"):
    """No neck: the head reads classes and boxes from the FPN itself (Lin et al. 2017)."""

    module: ClassVar[Any] = "sepc_zoo.models.necks:PlainNeck"


class SEPCNeck(NeckEntry, frozen=True, tag="sepc"):
    """The scale-equalizing pyramid convolution (SEPC, section 3)."""

    module: ClassVar[Any] = "sepc_zoo.models.necks.sepc:SEPC"
    head_convs: ClassVar[int] = 0

    blocks: Annotated[int, Meta(ge=1, le=32)] = 4  # pyramid convolutions in a row
    norm: bool = False  # integrated batch norm over all levels
    head_deform: bool = False  # deformable last convolution of each branch
    pconv_deform: bool = False  # deformable pyramid convolutions
    padding: Literal[0, 1] = 1  # padding of the last convolutions; the authors' weights need 0
    branches: bool = True  # separate last convolutions for classes and boxes; else one pyramid

    def __post_init__(self) -> None:
        _require(
            self.branches or not (self.head_deform or self.padding == 0),
            "neck: head_deform and padding 0 need branches, but branches is false",
        )

    @property
    def cropped_cells(self) -> int:
        return 1 - self.padding


# Classes of the open unions by their ``type`` entry: the class, or its address "module:name".
METHOD_TYPES: dict[str, Any] = {
    "retinanet": "sepc_zoo.methods.retinanet:RetinaNet",
    "freeanchor": "sepc_zoo.methods.freeanchor:FreeAnchor",
    "fsaf": "sepc_zoo.methods.fsaf:FSAF",
    "atss": "sepc_zoo.methods.atss:ATSS",
    "gfl": "sepc_zoo.methods.gfl:GFL",
    "fcos": "sepc_zoo.methods.fcos:FCOS",
    "fasterrcnn": "sepc_zoo.methods.fasterrcnn:FasterRCNN",
}
NECK_TYPES: dict[str, Any] = {"fpn": PlainNeck, "sepc": SEPCNeck}


class BackboneConfig(Entry, frozen=True):
    """A timm model as a feature extractor."""

    name: str  # timm's name
    kwargs: dict[str, Any] = {}  # arguments for timm.create_model; in_chans: channels of an image
    norm_eps: Fraction | None = None  # epsilon of all norms; None: timm's own
    stride_in_1x1: bool = False  # a ResNet's stages have their stride in the first 1x1, as in Caffe
    # Stages of a ResNet whose 3x3 convolutions are deformable; the fourth ends in C5.
    deform_stages: Annotated[tuple[Annotated[int, Meta(ge=1, le=4)], ...], Meta(max_length=4)] = ()

    def __post_init__(self) -> None:
        _require(
            NAME.fullmatch(self.name) is not None, f"backbone.name {self.name!r:.80} is no name"
        )
        _check_kwargs(self.kwargs, "backbone.kwargs")
        refused = sorted(REFUSED_BACKBONE_KWARGS & set(self.kwargs))
        _require(not refused, f"backbone.kwargs: {refused} select weights, not a model")
        known = type(self.in_chans) is int and self.in_chans >= 1
        _require(known, f"backbone.kwargs.in_chans is {self.in_chans!r:.80}, no number of channels")
        stages = self.deform_stages
        _require(len({*stages}) == len(stages), f"backbone.deform_stages {stages} has duplicates")

    @property
    def in_chans(self) -> int:
        """Number of channels of the input images."""
        return self.kwargs.get("in_chans", 3)


class FPNConfig(Entry, frozen=True):
    """The feature pyramid network (FPN): its levels, and how P6 and P7 are computed."""

    levels: tuple[Annotated[int, Meta(ge=2, le=5)], Annotated[int, Meta(ge=5, le=7)]] = (3, 7)
    # The input of P6's convolution; "pool": P6 has no convolution but every second cell of P5.
    p6_from: Literal["c5", "p5", "pool"] = "c5"
    relu_before_p7: bool = False
    norm: bool = False  # batch norm after each convolution up to P5, in place of its bias

    @property
    def strides(self) -> tuple[int, ...]:
        """Side of a cell of each level, pixels."""
        first, last = self.levels
        return tuple(2**level for level in range(first, last + 1))


class DenseHead(Entry, frozen=True, tag="dense"):
    """Two branches of convolutions that all levels share, for classes and for boxes."""

    convs: Annotated[int, Meta(ge=0, le=32)] = 4  # 3x3 convolutions of each branch before its last
    norm: Literal["none", "group"] = "none"  # norm after each of them; groups have 8 channels
    norm_bias: bool = False  # whether a convolution before a norm has a bias
    box_bias: Annotated[float, Meta(ge=-64, le=64)] = 0.0  # initial bias of the box convolution
    box_scales: bool = False  # a learned factor for each level on the box convolution's output
    box_activation: Literal["none", "relu", "exp"] = "none"  # activation after that factor
    quality: Literal["none", "cls", "box"] = "none"  # branch that also predicts box quality


class AnchorConfig(Entry, frozen=True):
    """Boxes laid on every cell of a level (RetinaNet, section 4)."""

    base_scale: Positive = 4.0  # side of the smallest square anchor, in strides
    octaves: Annotated[int, Meta(ge=1, le=16)] = 3  # sizes per octave
    ratios: Annotated[tuple[Positive, ...], Meta(min_length=1, max_length=16)] = (0.5, 1.0, 2.0)
    centre: Literal["cell", "corner"] = "cell"  # middle of the cell, or its upper left corner
    rounded: bool = True  # whether sides lie on whole pixels
    whole_sizes: bool = False  # whether sides of squares are first cut to whole pixels
    # Distance of cells: the level's stride, or height and width of the batch over those in cells.
    stride: Literal["level", "measured"] = "level"
    in_padding: bool = True  # whether training uses anchors on the padding of a batch

    @property
    def per_cell(self) -> int:
        return self.octaves * len(self.ratios)


class DeltaCoder(Entry, frozen=True, tag="delta"):
    """Shift and log-ratio from anchor to box (Faster R-CNN, section 3.1.2), over ``scale``."""

    scale: tuple[Positive, Positive, Positive, Positive] = (1.0, 1.0, 1.0, 1.0)
    clamp_shrinking: bool = True  # limit shrinking of a side to a factor of 62.5, as growth is


class DistanceCoder(Entry, frozen=True, tag="distance"):
    """Distances from the anchor's centre to the four sides of the box (FSAF, FCOS)."""

    order: Literal["tblr", "ltrb"] = "tblr"  # top, bottom, left, right; left, top, right, bottom
    unit: Positive = 1.0  # unit of a distance, in sides of the anchor or in pixels
    in_pixels: bool = False  # whether the unit is in pixels


class DistributionCoder(Entry, frozen=True, tag="distribution"):
    """A distribution over bins for the distance to left, top, right, bottom (GFL, section 3.2)."""

    bins: Annotated[int, Meta(ge=2, le=128)] = 17  # distances 0, 1, ..., bins - 1
    unit: Positive = 0.125  # distance between bins, in sides of the anchor


Coder = DeltaCoder | DistanceCoder | DistributionCoder


class RPNHead(Entry, frozen=True):
    """The region proposal network (Faster R-CNN, section 3.1), and how many regions it proposes."""

    convs: Annotated[int, Meta(ge=1, le=32)] = 1  # 3x3 convolutions before the last layers
    candidates_per_level: Annotated[int, Meta(ge=1, le=10**6)] = 1000  # anchors that reach NMS
    train_candidates_per_level: Annotated[int, Meta(ge=1, le=10**6)] = 2000
    max_proposals: Annotated[int, Meta(ge=1, le=10**5)] = 1000  # per image
    train_max_proposals: Annotated[int, Meta(ge=1, le=10**5)] = 2000
    iou_threshold: Fraction = 0.7  # IoU threshold of NMS within a level
    min_side: NonNegative = 1e-3  # minimum side of a proposal, pixels


class RoIHead(Entry, frozen=True):
    """The head that classifies each region (Faster R-CNN; choice of level: FPN, section 4.2)."""

    size: Annotated[int, Meta(ge=1, le=64)] = 7  # side of a pooled region, cells
    sampling_ratio: Annotated[int, Meta(ge=1, le=16)] = 2  # samples along a side of a pooled cell
    aligned: bool = True  # the value of a cell is at its centre, not at its corner
    # A region of canonical_side pixels is pooled from canonical_level, larger ones from coarser.
    canonical_level: Annotated[int, Meta(ge=2, le=5)] = 4
    canonical_side: Annotated[int, Meta(ge=1, le=16384)] = 224
    convs: Annotated[int, Meta(ge=0, le=32)] = 0  # 3x3 convolutions before the linear layers
    norm: bool = False  # batch norm after each 3x3 convolution, in place of its bias
    linears: Annotated[int, Meta(ge=0, le=32)] = 2  # linear layers before the last
    width: Annotated[int, Meta(ge=1, le=16384)] = 1024  # outputs of each of these linear layers
    # Further classes of the softmax that the weights were trained with; none is ever reported.
    unused_classes: Annotated[int, Meta(ge=0, le=1000)] = 0
    coder: DeltaCoder = DeltaCoder(scale=(0.1, 0.1, 0.2, 0.2))  # from a region to a detection
    min_side: NonNegative = 1e-2  # minimum side of a detection, pixels


class TwoStageHead(Entry, frozen=True, tag="two_stage"):
    """A head that proposes regions, and one that classifies them."""

    rpn: RPNHead = RPNHead()
    roi: RoIHead = RoIHead()


class PostprocessConfig(Entry, frozen=True):
    """From predictions to detections."""

    score_threshold: Fraction = 0.05
    # What is limited per level: anchors with all their classes, or pairs of anchor and class.
    candidates: Literal["anchors", "pairs"] = "anchors"
    candidates_per_level: Annotated[int, Meta(ge=1, le=10**6)] = 1000  # candidates that reach NMS
    # How predicted quality enters the score: "factor" multiplies after candidates are chosen,
    # "root" takes the root of quality times score before that.
    quality: Literal["factor", "root"] = "factor"
    empty_boxes: bool = False  # whether boxes without area after clipping are kept
    iou_threshold: Fraction = 0.5
    # Soft-NMS: overlapping boxes lose score instead of being removed (Bodla et al. 2017).
    soft_nms: Literal["none", "linear", "gaussian"] = "none"
    soft_nms_sigma: Positive = 0.5  # width of the gaussian; larger ones take less score away
    view_fusion: Literal["nms", "wbf"] = "nms"  # how detections of several views are merged
    max_detections: Annotated[int, Meta(ge=1, le=10**5)] = 100  # per image


class WeightsConfig(Entry, frozen=True):
    """The input that the weights of a model expect, and where the weights come from."""

    tag: str = ""
    # Of RGB, or the C channels of the images, in 0..1.
    mean: Annotated[tuple[Finite, ...], PerChannel] = IMAGENET_MEAN
    std: Annotated[tuple[FinitePositive, ...], PerChannel] = IMAGENET_STD
    image_size: tuple[int, int] = (800, 1333)  # short side, maximum long side; pixels
    keep_ratio: bool = True  # False: an image is stretched to image_size
    # Orientation of a fixed input, as exported files may have: true is higher than wide.
    upright: bool | None = None
    pad_multiple: Annotated[int, Meta(ge=1, le=4096)] = 32  # both sides of a batch, pixels
    antialias: bool = True  # antialiasing when an image is made smaller; the SEPC authors had none
    resize_floats: bool = False  # resized pixels are not rounded to whole grey levels
    round_sides: bool = True  # resized sides are rounded to whole pixels; else they are cut
    dataset: str = ""  # data set that the weights were trained on
    license: str = ""
    source: str = ""  # address of the published checkpoint
    authors_ap: Finite | None = None  # AP on COCO val2017 in percent, as the publisher states it

    def __post_init__(self) -> None:
        short, long = self.image_size
        _require(1 <= short <= long <= 16384, f"image_size {self.image_size}: 1 <= short <= long")


def without_credit(weights: WeightsConfig) -> WeightsConfig:
    """The input that weights expect, without the entries that name published weights."""
    credit = {"tag": "", "dataset": "", "license": "", "source": "", "authors_ap": None}
    return msgspec.structs.replace(weights, **credit)


class DetectorConfig(Entry, frozen=True):
    """The complete description of a detector except for its weights."""

    architecture: str  # name that the model was built by
    method: MethodConfig
    backbone: BackboneConfig
    neck: NeckConfig
    num_classes: Annotated[int, Meta(ge=1, le=10**5)]
    label_names: tuple[str, ...]
    category_ids: tuple[int, ...]  # ids of the classes in the data set trained on
    channels: Annotated[int, Meta(ge=1, le=8192)] = 256  # channels of each level of the FPN
    fpn: FPNConfig = FPNConfig()
    head: DenseHead | TwoStageHead = DenseHead()
    anchors: AnchorConfig = AnchorConfig()
    coder: Coder = DeltaCoder()
    postprocess: PostprocessConfig = PostprocessConfig()
    inclusive_boxes: bool = False  # x2, y2 are the last pixel inside, as the SEPC authors have it
    weights: WeightsConfig = WeightsConfig()

    def __post_init__(self) -> None:
        _require(
            NAME.fullmatch(self.architecture) is not None,
            f"architecture {self.architecture!r:.80} is no name of a model",
        )
        outputs = max(self.num_classes, self.box_values) * self.anchors.per_cell
        _require(outputs <= 10**6, f"num_classes times anchors of a cell is {outputs}, over 1e6")
        _require(
            tag_of(self.head) == self.method.head,
            f"head.type is {tag_of(self.head)!r}, but {self.method.name} has {self.method.head!r}",
        )
        channels = self.backbone.in_chans
        for name, values in (("mean", self.weights.mean), ("std", self.weights.std)):
            _require(
                len(values) == channels,
                f"weights.{name} has {len(values)} values, but the backbone reads {channels} "
                "channels (backbone.kwargs.in_chans)",
            )
        for name in ("label_names", "category_ids"):
            values = getattr(self, name)
            _require(
                len(values) == self.num_classes,
                f"{name} has {len(values)} entries for num_classes {self.num_classes}",
            )
            _require(len(set(values)) == len(values), f"{name} has duplicates")

    @property
    def box_values(self) -> int:
        """Number of values that the head predicts for the box of an anchor."""
        return 4 * self.coder.bins if isinstance(self.coder, DistributionCoder) else 4


def tag_of(config: Any) -> str:
    """The ``type`` entry of a config."""
    return config.__struct_config__.tag


def resolve(address: Any) -> Any:
    """A class from its address ``"module:name"``, or the class itself."""
    return pkgutil.resolve_name(address) if isinstance(address, str) else address


def _check_kwargs(kwargs: Mapping[str, Any], where: str) -> None:
    """Refuse large or not plain arguments: they may come from an untrusted config.json."""
    try:
        text = json.dumps(kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error
    _require(
        len(text) <= MAX_KWARGS_LENGTH, f"{where} has over {MAX_KWARGS_LENGTH} characters of JSON"
    )
    sane = all(abs(number) <= MAX_NUMBER for number in _numbers(kwargs))
    _require(sane, f"{where} has numbers over {MAX_NUMBER}")


def _numbers(value: Any) -> Iterator[float]:
    """All numbers in nested plain data."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)


# Entries at the top level of config.json, as in timm's; all others are in model_args.
_TOP = ("architecture", "num_classes", "label_names", "category_ids")


def config_to_json(config: DetectorConfig) -> dict[str, Any]:
    """The content of ``config.json`` for a model: timm's layout, plain JSON types."""
    entries = msgspec.to_builtins(config)
    weights = entries.pop("weights")
    top = {name: entries.pop(name) for name in _TOP}
    return top | {"model_args": entries, "pretrained_cfg": weights}


def config_from_json(content: Any) -> DetectorConfig:
    """The inverse of ``config_to_json``.

    Raises:
        ConfigError: an entry is missing, unknown, of the wrong type or out of range.
    """
    _require(isinstance(content, dict), f"config: expected a table, got {content!r:.80}")
    _refuse_unknown(set(content) - {*_TOP, "model_args", "pretrained_cfg"}, "config")
    entries = {name: content[name] for name in _TOP if name in content}
    model_args, weights = content.get("model_args", {}), content.get("pretrained_cfg", {})
    for name, value in (("model_args", model_args), ("pretrained_cfg", weights)):
        _require(isinstance(value, dict), f"{name}: expected a table, got {value!r:.80}")
    misplaced = {*_TOP, "weights"} & set(model_args)
    _refuse_unknown(misplaced, "model_args")
    return from_plain(DetectorConfig, entries | model_args | {"weights": weights}, "config")


def override(config: T, changes: Mapping[str, Any], where: str = "config") -> T:
    """``config`` with ``changes``; a table given for a nested config changes its entries only.

    Raises:
        ConfigError: a change names no entry, or its value does not fit.
    """
    return from_plain(type(config), _merge(config, changes, where), where)


def merge_entries(entries: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain entries with changes; a table changes entries of a table of the same type only."""
    merged = dict(entries)
    for name, change in changes.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(change, Mapping):
            kept = change.get("type", old.get("type")) == old.get("type")
            merged[name] = merge_entries(old, change) if kept else change
        else:
            merged[name] = change
    return merged


def _merge(config: Any, changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    names = config.__struct_fields__
    unknown = sorted(set(changes) - {*names, "type"})
    reasons = getattr(config, "lacks", {})
    why = "".join(f"; no {name}: {reasons[name]}" for name in unknown if name in reasons)
    _require(not unknown, f"{where} has no {unknown}{why}; it has {sorted(names)}")
    entries: dict[str, Any] = {name: getattr(config, name) for name in names}
    if config.__struct_config__.tag is not None:
        entries["type"] = tag_of(config)
    for name, change in changes.items():
        old = entries.get(name)
        if isinstance(old, Entry) and isinstance(change, Mapping):
            is_same = change.get("type", tag_of(old)) == tag_of(old)
            change = _merge(old, change, f"{where}.{name}") if is_same else change
        entries[name] = change
    return msgspec.to_builtins(entries)


def from_plain(kind: type[T], content: Any, where: str) -> T:
    """A config from JSON types, each entry checked against its annotation.

    Raises:
        ConfigError: names the entry.
    """
    try:
        return msgspec.convert(content, kind, dec_hook=_open_union)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _explain(_with_choices(str(error), kind), where) from error


def _open_union(kind: type, content: Any) -> Any:
    """A method's or a neck's config, by its ``type``."""
    word, types = ("method", METHOD_TYPES) if kind is MethodConfig else ("neck", NECK_TYPES)
    if not isinstance(content, dict):
        raise ValueError(f"expected a table such as {{'type': {next(iter(types))!r}}}")
    tag = content.get("type")
    if not isinstance(tag, str) or tag not in types:
        raise ValueError(
            f"no type {tag!r:.80}; there are {', '.join(types)}; if the {word} is your own, first "
            f"import the module that calls register_{word}"
        )
    try:
        return msgspec.convert(content, resolve(types[tag]))
    except msgspec.ValidationError as error:
        raise ValueError(_with_choices(str(error), resolve(types[tag]))) from error


def _with_choices(text: str, kind: type) -> str:
    """The message of msgspec on an entry of ``kind``, with the choices if a value is not one."""
    found = re.fullmatch(r"(Invalid (?:enum )?value [^`]*)( - at `\$\.([\w.]+)`)", text, re.DOTALL)
    if found is None:
        return text
    choices: list[Any] = [kind]
    for name in found[3].split("."):
        if name == "type":
            choices = [tag_of(one) for one in choices]
            continue
        hints = [get_type_hints(one).get(name) for one in choices]
        choices = [member for hint in hints if hint for member in _members(hint)]
    return f"{found[1]}; choose from {', '.join(map(str, choices))}{found[2]}"


def _members(hint: Any) -> Iterator[Any]:
    """The types of a union, the values of a Literal; else the hint itself."""
    for arg in get_args(hint):
        yield from _members(arg)
    if not get_args(hint):
        yield hint


def _explain(text: str, where: str) -> ConfigError:
    """The error for a message of msgspec, ``"reason - at `$.path`"``, which may be nested."""
    reason, *paths = re.split(r" - at `(?:\$|key in \$)([^`]*)`", text)
    path = where + "".join(reversed([part for part in paths if part]))
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        return UnknownEntriesError(f"{path}: unknown entry {unknown[1]!r:.80}")
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        return ConfigError(f"{path}: missing entry {missing[1]!r}")
    reason = reason.replace("`", "")
    return ConfigError(f"{path}: {reason[:1].lower()}{reason[1:]}"[:1000])


def _refuse_unknown(names: set[Any], where: str) -> None:
    if names:
        raise UnknownEntriesError(f"{where}: unknown entries {sorted(names, key=str)!r:.300}")
