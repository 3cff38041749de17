"""The tables of names: backbones, necks, methods, published weights; from a name to a config.

A name is ``{method}_{backbone}_{neck}[.{tag}]``. No variant has a class or a file of its own: a new
backbone or neck is a row here, a new method a file in ``methods`` and a row in ``METHOD_TYPES``.
"""

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
from msgspec.structs import replace

from sepc_zoo.catalog import curated_names
from sepc_zoo.config import (
    METHOD_TYPES,
    NAME,
    NECK_TYPES,
    DetectorConfig,
    Entry,
    MethodConfig,
    NeckConfig,
    NeckEntry,
    PlainNeck,
    SEPCNeck,
    WeightsConfig,
    from_plain,
    merge_entries,
    override,
    resolve,
    tag_of,
)
from sepc_zoo.errors import ConfigError
from sepc_zoo.published import PUBLISHED, PUBLISHERS, find_row

HUB_PREFIX, LOCAL_PREFIX = "hf-hub:", "local-dir:"  # of names of repositories and of folders
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*(@.+)?")  # org/name, org/name@revision

# Short names of curated backbones. Any other timm model goes by its own name.
BACKBONES = {
    "r18": "resnet18.tv_in1k",
    "r34": "resnet34.tv_in1k",
    "r50": "resnet50.tv_in1k",
    "r101": "resnet101.tv_in1k",
    "x101_32x4d": "resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k",
    "x101_64x4d": "resnext101_64x4d.tv_in1k",
    "mnv2": "mobilenetv2_100",
    "mnv3": "mobilenetv3_large_100",
    "mnv4s": "mobilenetv4_conv_small",
    "mnv4m": "mobilenetv4_conv_medium",
    "effnet_b0": "efficientnet_b0",
    "effnetv2_s": "tf_efficientnetv2_s",
    "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
}
# Channels of each level of the FPN in new models with a backbone for small devices. With the 256 of
# other models, neck and head would cost ten times the backbone.
MOBILE_CHANNELS = {BACKBONES[name]: 64 for name in ("mnv2", "mnv3", "mnv4s", "mnv4m", "effnet_b0")}

NECKS: dict[str, NeckConfig] = {
    "fpn": PlainNeck(),
    "pconv": SEPCNeck(),
    "ibn_pconv": SEPCNeck(norm=True),
    "sepc_lite": SEPCNeck(norm=True, head_deform=True),
    "sepc": SEPCNeck(norm=True, head_deform=True, pconv_deform=True),
}

# The model that `sepc-zoo predict` takes by default: AP 41.8 as published for 55 GMACs an image, a
# quarter of the usual cost, and under the Apache-2.0 licence. Some have a higher AP and cost more.
RECOMMENDED = "gfl_resnet50c_sepc_lite.universenet_2008s_mini"

_registered: dict[str, DetectorConfig] = {}


class UnknownModelError(ConfigError):
    """A name that builds no model; the message lists the nearest ones."""


def model_config(name: str) -> DetectorConfig:
    """The config of a name, with the conventions of its tag where it has one.

    Raises:
        UnknownModelError: the name builds no model.
    """
    if name in _registered:
        return _registered[name]
    method, backbone, neck, tag = _split(name)
    timm_name = BACKBONES.get(backbone, backbone)
    if not _is_timm_model(timm_name):
        raise _unknown(name)
    method_type = resolve(METHOD_TYPES[method])
    fitted_neck = method_type.fit_neck(NECKS[neck])
    if fitted_neck is None:
        raise UnknownModelError(
            f"no model {name!r}: {method} has no neck {neck}; it has {', '.join(necks_of(method))}"
        )
    names, ids = coco_categories()
    entries = {
        "architecture": f"{method}_{backbone}_{neck}",
        "method": {"type": method},
        "backbone": {"name": timm_name},
        "neck": msgspec.to_builtins(fitted_neck),
        "num_classes": len(names),
        "label_names": names,
        "category_ids": ids,
        "channels": MOBILE_CHANNELS.get(timm_name, 256),
        "head": {"type": "dense", "convs": fitted_neck.head_convs},
        "coder": {"type": "delta"},
        "weights": _backbone_input(timm_name),
    }
    config = from_plain(DetectorConfig, merge_entries(entries, method_type.defaults), "config")
    return config if tag is None else _as_published(config, name)


def check_name(name: str) -> None:
    """Check a name as far as possible without importing timm, which takes seconds.

    Raises:
        UnknownModelError: the name has an unknown method, neck or tag.
    """
    if name not in _registered:
        _split(name)


def hub_hint(source: str) -> str:
    """The end of a message that there is no such folder, where an id of the hub may be meant."""
    return f"; a model on the hub is {HUB_PREFIX}{source}" if HUB_ID.fullmatch(source) else ""


def _split(name: str) -> Sequence[Any]:
    """Method, backbone, neck and tag of a name; without a tag None."""
    pattern = rf"({'|'.join(METHOD_TYPES)})_(.+?)_({'|'.join(NECKS)})(?:\.(\w+))?"
    match = re.fullmatch(pattern, name)
    if match is None or (match[4] and name not in PUBLISHED):
        raise _unknown(name)
    return match.groups()


def authors_config(name: str) -> DetectorConfig:
    """The config of a model as the SEPC authors trained it.

    Raises:
        UnknownModelError: the authors published no model of this name.
    """
    row = find_row(name, "sepc")
    if row is None:
        raise _unknown(name)
    return model_config(row.name)


def necks_of(method: str) -> list[str]:
    """Names of the necks that models of a method may have."""
    method_type = resolve(METHOD_TYPES[method])
    return [name for name, neck in NECKS.items() if method_type.fit_neck(neck) is not None]


def neck_name(neck: NeckConfig) -> str:
    """The name of a neck, whatever its padding and what the method's ``fit_neck`` changed."""
    if isinstance(neck, SEPCNeck):
        blocks = neck.blocks if neck.branches else SEPCNeck().blocks
        neck = replace(neck, padding=1, branches=True, blocks=blocks)
    return next((name for name, row in NECKS.items() if row == neck), neck.name)


def _as_published(config: DetectorConfig, name: str) -> DetectorConfig:
    """Add the conventions of published weights, and the entries that name their publisher."""
    row = PUBLISHED[name]
    credit = {
        **{"tag": row.tag, "source": row.url, "authors_ap": row.ap},
        "license": PUBLISHERS[row.publisher].license,
    }
    weights = override(WeightsConfig(), {**row.conventions.get("weights", {}), **credit})
    return override(config, {**row.conventions, "weights": weights})


def _is_timm_model(name: str) -> bool:
    """Whether timm has the model; ``timm.is_model`` alone overlooks an unknown tag."""
    import timm  # takes seconds, and listing names needs none of it

    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:
        return False
    return timm.is_model(name)


def _backbone_input(timm_name: str) -> dict[str, Any]:
    """Mean and standard deviation that the backbone's ImageNet weights expect, where timm has them.

    They are entries of ``WeightsConfig``.
    """
    import timm

    pretrained = timm.get_pretrained_cfg(timm_name)
    known = {"mean": getattr(pretrained, "mean", None), "std": getattr(pretrained, "std", None)}
    return {name: value for name, value in known.items() if value}


@cache
def coco_categories() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the 80 COCO classes, and the ids under which the data set has them."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

    categories = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    known = [(n, i) for i, n in enumerate(categories) if n not in ("__background__", "N/A")]
    return tuple(name for name, _ in known), tuple(i for _, i in known)


def list_models(
    filter: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
) -> list[str]:
    """Names of curated and registered models, sorted.

    Args:
        filter: wildcard pattern, or several of which one must match: ``"*_r50_sepc*"``.
        pretrained: only models with published weights, with their tags.
        exclude_filters: patterns of which none may match.
    """
    if pretrained:
        names = set(PUBLISHED)
    else:
        names = {f"{m}_{b}_{n}" for m in METHOD_TYPES for b in BACKBONES for n in necks_of(m)}
        names |= set(_registered)
    return select(names, filter, exclude_filters)


def select(
    names: Iterable[str],
    filter: str | Iterable[str] = "",
    exclude_filters: str | Iterable[str] = "",
) -> list[str]:
    """The names that the patterns of ``list_models`` select, sorted."""
    wanted, unwanted = _patterns(filter) or ["*"], _patterns(exclude_filters)
    return sorted(n for n in names if _matches(n, wanted) and not _matches(n, unwanted))


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether a pattern fits the name, with its tag or without."""
    names = (name, name.partition(".")[0])
    return any(fnmatch.fnmatchcase(n, pattern) for n in names for pattern in patterns)


def _patterns(patterns: str | Iterable[str]) -> list[str]:
    return [p for p in ([patterns] if isinstance(patterns, str) else patterns) if p]


def list_backbones() -> list[str]:
    """Short names of the curated backbones; any timm model with strides 8, 16 and 32 works too."""
    return list(BACKBONES)


def is_model(name: str) -> bool:
    """Whether a name builds a model.

    Args:
        name: with or without a tag, ``"retinanet_r50_sepc.coco_1x"``.
    """
    try:
        model_config(name)
    except UnknownModelError:
        return False
    return True


def register_model(name: str, base: str, **config_overrides: Any) -> None:
    """Add a row of your own: ``register_model("cells", "fsaf_r18_sepc_lite", channels=128)``.

    Args:
        name: of the new row, for ``create_model``.
        base: the model that it starts from.
        config_overrides: entries of ``DetectorConfig``; a dict changes entries of a nested one.
            For other classes, ``num_classes`` or ``label_names`` is enough.

    Raises:
        ConfigError: the name is taken, or an override does not fit.
    """
    if is_model(name):
        raise ConfigError(f"there is a model {name!r} already; choose another name")
    num_classes = config_overrides.pop("num_classes", None)
    label_names = config_overrides.pop("label_names", None)
    config = with_classes(model_config(base), num_classes, label_names)
    _registered[name] = override(config, config_overrides | {"architecture": name})


def register_method(method: type[MethodConfig]) -> None:
    """Add a method of your own; models are then called ``{tag}_{backbone}_{neck}``.

    Args:
        method: a subclass of ``methods.method.Method``, with ``tag="its_name"``.

    Raises:
        ConfigError: it is not such a class, or the name is taken or is no name.
    """
    if not (
        isinstance(method, type) and issubclass(method, Entry) and issubclass(method, MethodConfig)
    ):
        raise ConfigError(f"register_method: expected a subclass of Method, got {method!r:.80}")
    _add_name(METHOD_TYPES, _type_of(method), "method")
    METHOD_TYPES[tag_of(method)] = method


def register_neck(name: str, config: NeckConfig) -> None:
    """Add a neck of your own; models are then called ``{method}_{backbone}_{name}``.

    Args:
        name: letters, digits, ``_`` and ``-``.
        config: its entries, of a subclass of ``config.NeckEntry`` with a ``tag`` and the class
            variable ``module``. Several names may share one class.

    Raises:
        ConfigError: it is not such a config, or the name is taken or is no name.
    """
    if not isinstance(config, NeckEntry):
        raise ConfigError(
            "register_neck: expected an object of a subclass of NeckEntry, such as MyConfig(), "
            f"got {config!r:.80}"
        )
    if not hasattr(config, "module"):
        raise ConfigError(
            f"{type(config).__name__} names no module: add `module: ClassVar[Any] = ` and the class"
        )
    _add_name(NECKS, name, "neck")
    known = NECK_TYPES.setdefault(_type_of(type(config)), type(config))
    if known is not type(config):
        raise ConfigError(f"there is a neck of type {tag_of(config)!r} already; choose another tag")
    NECKS[name] = config


def _type_of(kind: type[MethodConfig] | type[NeckConfig]) -> str:
    """The tag of a config's class: its ``type`` entry in ``config.json``."""
    tag = tag_of(kind)
    if tag is None:
        raise ConfigError(f'{kind.__name__} has no tag: write tag="its_name" beside frozen=True')
    return str(tag)


def _add_name(table: dict[str, Any], name: str, kind: str) -> None:
    if name in table:
        raise ConfigError(f"there is a {kind} {name!r} already; choose another name")
    if NAME.fullmatch(name) is None or "." in name:
        raise ConfigError(f"{name!r} is no name of a {kind}: use letters, digits, _ and -")


def with_classes(
    config: DetectorConfig, num_classes: int | None, label_names: Sequence[str] | None
) -> DetectorConfig:
    """The config for other classes. Their ids count from 1 unless all have known names.

    Raises:
        ConfigError: the number and the names disagree, or the names are no list of strings.
    """
    if label_names is not None:
        if isinstance(label_names, str) or not isinstance(label_names, Iterable):
            raise ConfigError(
                f"label_names: expected a list of names such as ['cat', 'dog'], got {label_names!r}"
            )
        names = tuple(label_names)
        if num_classes is not None and num_classes != len(names):
            raise ConfigError(
                f"num_classes is {num_classes}, but there are {len(names)} label_names"
            )
    elif num_classes is None or num_classes == config.num_classes:
        return config
    else:
        names = tuple(f"class_{i}" for i in range(num_classes))
    known = dict(zip(config.label_names, config.category_ids, strict=True))
    if all(name in known for name in names):
        ids = tuple(known[name] for name in names)
    else:
        ids = tuple(range(1, len(names) + 1))
    changes = {"num_classes": len(names), "label_names": names, "category_ids": ids}
    return override(config, changes)


def _unknown(name: str) -> UnknownModelError:
    known = [*curated_names(), *_registered, *PUBLISHED]
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "list_models() names them all"
    return UnknownModelError(
        f"no model {name!r}: a name is {{method}}_{{backbone}}_{{neck}}[.{{tag}}] with a method of "
        f"{', '.join(METHOD_TYPES)}, a backbone of list_backbones() or timm, and a neck of "
        f"{', '.join(NECKS)} (import your own first); {hint}"
    )
