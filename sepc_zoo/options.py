"""Options stated once: a dataclass field with its type, default, range and help.

The command line (``cli/arguments.py``), the checks of values, a run's ``config.yaml`` and the
reference pages are made from these fields.
"""

import difflib
import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, ParamSpec, TypeVar, Union

import msgspec

from sepc_zoo.errors import ConfigError

T = TypeVar("T", bound="Options")
P = ParamSpec("P")
R = TypeVar("R")
# Placeholders of values that may be paths, in which ``~`` is the home folder.
PATHS = {
    *("A", "B", "CHECKPOINT", "DATA", "DIR", "FILE", "FILE.csv", "IMAGES", "MODEL"),
    *("NAME_OR_DIR", "OUT", "RUN", "SOURCE"),
}


class OptionError(ConfigError):
    """An option with a value that does not fit.

    Attributes:
        name: the field's name.
        text: what is wrong, to follow the name: ``is 0; it must be at least 1``.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name} {text}")
        self.name, self.text = name, text


@dataclass(frozen=True)
class OptionInfo:
    """An option: the facts that its field states, and the field's name, type and default."""

    help: str  # a phrase that makes sense alone
    ge: float | None = None  # bounds of a number, or of each number of a list
    gt: float | None = None
    le: float | None = None
    metavar: str | tuple[str, ...] | None = None  # placeholder of the value (default: N, X, name)
    aliases: tuple[str, ...] = ()  # further flags
    positional: bool = False  # an argument without a flag
    exclusive: str | None = None  # a key; options with the same key exclude each other
    bare: Any = None  # value of the option if its flag is given without a value
    may_be_empty: bool = False  # whether the flag of a list may be given without a value
    name: str = ""
    hint: Any = None
    default: Any = None  # dataclasses.MISSING: the option is required

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is MISSING

    @property
    def range(self) -> str:
        """The bounds in words, or nothing: ``at least 1``, ``above 0, at most 1``."""
        bounds = {"at least": self.ge, "above": self.gt, "at most": self.le}
        return ", ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)

    def accepts(self, number: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            math.isfinite(number)
            and (self.ge is None or number >= self.ge)
            and (self.gt is None or number > self.gt)
            and (self.le is None or number <= self.le)
        )


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    **facts: Any,
) -> Any:
    """A dataclass field that is an option; without ``default`` and ``factory`` it is required.

    Args:
        factory: a function that makes the default, such as ``dict``.
        facts: further fields of ``OptionInfo``.
    """
    metadata = {"option": OptionInfo(help, **facts)}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of all options: checks types and ranges when it is built.

    Lists become tuples, paths become strings, and a single string becomes a list of one.

    Raises:
        OptionError: a value has the wrong type or is out of range.
    """

    def __post_init__(self) -> None:
        for info in option_fields(type(self)):
            value = _convert(getattr(self, info.name), info)
            for number in value if isinstance(value, tuple) else (value,):
                if type(number) in (int, float) and not info.accepts(number):
                    text = f"is {value}; it must be {info.range or 'finite'}"
                    raise OptionError(info.name, text)
            object.__setattr__(self, info.name, value)


def option_groups(cls: type[Options]) -> Mapping[str, Sequence[OptionInfo]]:
    """The options of a class in groups, by the title of each.

    A group has the options that one class states; the title is the first line of its docstring.
    Classes of the same title share a group. The order is that of ``__mro__``.
    """
    hints = typing.get_type_hints(cls)
    known: dict[str, OptionInfo] = {}
    for entry in fields(cls):
        if info := entry.metadata.get("option"):
            factory, name = entry.default_factory, entry.name
            default = entry.default if factory is MISSING else factory()
            known[name] = replace(info, name=name, hint=hints[name], default=default)
    groups: dict[str, list[OptionInfo]] = {}
    for base in cls.__mro__:
        title = (base.__doc__ or "").partition("\n")[0].rstrip(".")
        names = [name for name in vars(base).get("__annotations__", {}) if name in known]
        groups.setdefault(title, []).extend(known.pop(name) for name in names)
    return {title: infos for title, infos in groups.items() if infos}


def option_fields(cls: type[Options]) -> list[OptionInfo]:
    """The options of a class in the order of their groups."""
    return [info for infos in option_groups(cls).values() for info in infos]


def help_of(info: OptionInfo) -> str:
    """The help of an option with its default, unless that is empty, boolean or in the help."""
    text = info.help
    is_said = info.required or isinstance(info.default, bool) or "(default" in text
    shown = "" if is_said else default_text(info.default)
    if not shown:
        return text
    return f"{text[:-1]}; default {shown})" if text.endswith(")") else f"{text} (default {shown})"


def takes_options(cls: type[Options]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator that adds the options of a class to the signature and the help of a function.

    Notebooks then complete them. Type checkers read the annotation of ``**options`` instead.

    Args:
        cls: class of the options; one that is a parameter of the function is not added.
    """

    def name_options(function: Callable[P, R]) -> Callable[P, R]:
        signature, text = inspect.signature(function), inspect.cleandoc(function.__doc__ or "")
        named = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        others = [info for info in option_fields(cls) if info.name not in signature.parameters]
        for info in others:
            default = None if info.required else info.default
            kind = inspect.Parameter.KEYWORD_ONLY
            named.append(inspect.Parameter(info.name, kind, default=default))
        rows = "\n".join(f"    {info.name}: {help_of(info)}" for info in others)
        function.__doc__ = f"{text}\n\nOptions:\n{rows}"
        function.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
        return function

    return name_options


def as_dict(options: Options) -> dict[str, Any]:
    """The options in plain types, in the order of their groups; lists for tuples."""
    content = msgspec.json.decode(msgspec.json.encode(options))
    return {info.name: content[info.name] for info in option_fields(type(options))}


def from_dict(cls: type[T], content: Any, where: str) -> T:
    """The inverse of ``as_dict``.

    Args:
        where: name of the file, for messages.

    Raises:
        ConfigError: an entry is missing, unknown, of the wrong type or out of range.
    """
    check_names(cls, content, where)
    required = [info.name for info in option_fields(cls) if info.required]
    if missing := [name for name in required if name not in content]:
        raise ConfigError(f"{where}: missing options {missing}")
    try:
        return cls(**content)
    except OptionError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_names(cls: type[Options], content: Any, where: str) -> None:
    """Check that the content of a file is a mapping whose keys are options.

    Args:
        where: name of the file, for messages.

    Raises:
        ConfigError: it is no mapping, or a key is unknown.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: expected a mapping of options, got {content!r:.80}")
    infos = option_fields(cls)
    for name in content:
        if name not in {info.name for info in infos}:
            near = nearest_option(str(name), infos)
            hint = f"; did you mean {near!r}?" if near else ""
            raise ConfigError(f"{where}: unknown option {name!r:.80}{hint}")


def flag_of(name: str) -> str:
    """``--batch-size`` of ``batch_size``."""
    return "--" + name.replace("_", "-")


def nearest_option(name: str, infos: Iterable[OptionInfo]) -> str | None:
    """The option nearest to a misspelled name, by its name, aliases and first words of its help."""
    known: dict[str, str] = {}
    for info in infos:
        first_words = re.split(r"[,;]| \(", info.help)[0].removeprefix("number of ")
        known |= dict.fromkeys(map(_in_words, (first_words, *info.aliases, info.name)), info.name)
    near = difflib.get_close_matches(_in_words(name), known, 1)
    return known[near[0]] if near else None


def _in_words(name: str) -> str:
    return re.sub("[-_]+", " ", name).strip()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested entries, each with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def strip_none(hint: Any) -> Any:
    """``X`` of ``X | None``, ``X | Y`` of ``X | Y | None``."""
    if is_union(hint):
        some = tuple(arg for arg in typing.get_args(hint) if arg is not type(None))
        return Union[some]  # noqa: UP007
    return hint


def is_union(hint: Any) -> bool:
    """Whether a type is ``X | Y``."""
    return typing.get_origin(hint) in (Union, types.UnionType)


def type_name(hint: Any) -> str:
    """A type in words: ``int``, ``2 x float``, ``list of str``, ``sgd or adamw``."""
    hint = strip_none(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(map(str, args))
    if is_union(hint):
        return " or ".join(map(type_name, args))
    if origin is tuple:
        count = "list of" if args[-1] is Ellipsis else f"{len(args)} x"
        return f"{count} {type_name(args[0])}"
    return {bool: "true or false", dict: "mapping"}.get(origin or hint, (origin or hint).__name__)


def default_text(value: Any) -> str:
    """A default as it is written on the command line; nothing for an empty one."""
    if value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(value: Any, info: OptionInfo) -> Any:
    is_path = info.metavar in PATHS
    if is_path and isinstance(value, list | tuple):
        value = [_expand(item) for item in value]
    value = _expand(value) if is_path else value
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(value, str) and typing.get_origin(strip_none(info.hint)) is tuple:
        value = (value,)
    try:
        # YAML reads 1e-3, without a point, as a text.
        return msgspec.convert(value, info.hint, strict=strip_none(info.hint) is not float)
    except msgspec.ValidationError as error:
        text = f"is {value!r:.80}; it must be {type_name(info.hint)}"
        raise OptionError(info.name, text) from error


def _expand(value: Any) -> Any:
    return os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value
