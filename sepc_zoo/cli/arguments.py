"""Parse command lines into options, and write options as command lines."""

import argparse
import ast
import re
import typing
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from sepc_zoo.options import (
    OptionError,
    OptionInfo,
    Options,
    flag_of,
    flatten,
    help_of,
    is_union,
    nearest_option,
    option_fields,
    option_groups,
    strip_none,
)

FLAG = re.compile(r"--?[A-Za-z][\w-]*")  # negative numbers are values


def classes_of(cls: type[Options]) -> list[type[Options]]:
    """The classes of options of a command: the one that it passes on, if any, and its own."""
    return [*filter(None, [getattr(cls, "passes_on", None)]), cls]


def make_parser(program: str, description: str, cls: type[Options]) -> argparse.ArgumentParser:
    """The parser of a command: the options of a class in groups.

    An option that is not given is absent from the result. If ``cls`` has ``passes_on``, a further
    class of options, these are on the command line too, and none of them is required.
    """
    parser = argparse.ArgumentParser(program, description=description, allow_abbrev=False)
    exclusive: dict[str, Any] = {}
    words: list[str] = []
    for source in classes_of(cls):
        for title, infos in option_groups(source).items():
            group = parser.add_argument_group(title)
            for info in infos:
                key, target = info.exclusive, group
                if key is not None:
                    if key not in exclusive:
                        exclusive[key] = group.add_mutually_exclusive_group()
                    target = exclusive[key]
                names, arguments = describe(info)
                if source is not cls:
                    arguments.pop("required", None)
                action = target.add_argument(*names, default=argparse.SUPPRESS, **arguments)
                text = f"{action.metavar}{' ...' * (action.nargs in ('+', '*'))}"
                if action.required:
                    words.append(text if info.positional else f"{names[0]} {text}")
                elif info.positional:
                    words.append(f"[{text}]")
    parser.usage = " ".join(["%(prog)s", *words, "[OPTION ...]"])
    return parser


def parse(parser: argparse.ArgumentParser, cls: type[Options], texts: Sequence[str]) -> Options:
    """The options of a command line; those of ``passes_on`` go into the dict ``given``.

    Raises:
        OptionError: a value does not fit.
        SystemExit: an argument is missing, unknown or cannot be read.
    """
    refuse_unknown(parser, cls, texts)
    values = vars(parser.parse_args(texts))
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, KeyValue) for item in value):
            values[name] = nested(name, value)
    if not hasattr(cls, "passes_on"):
        return cls(**values)
    names = [info.name for info in option_fields(cls)]
    own = {name: values.pop(name) for name in names if name in values}
    return cls(**own, given=values)  # type: ignore[call-arg]


def refuse_unknown(
    parser: argparse.ArgumentParser, cls: type[Options], texts: Sequence[str]
) -> None:
    """Refuse an unknown flag and name the nearest, before argparse reports what is missing."""
    known = [info for source in classes_of(cls) for info in option_fields(source)]
    flags = [info for info in known if not info.positional]
    for text in takewhile(lambda text: text != "--", texts):
        flag = text.partition("=")[0]
        if FLAG.fullmatch(flag) and flag not in parser._option_string_actions:
            near = nearest_option(flag, flags)
            hint = f"did you mean {flag_of(near)}?" if near else f"{parser.prog} --help lists all"
            parser.error(f"unknown option {flag}; {hint}")


def command_line(options: Options, leave_out: str | None = None) -> list[str]:
    """The arguments that give these options, without those at their defaults.

    Args:
        leave_out: name of another option to leave out.
    """
    words: list[str] = []
    for info in option_fields(type(options)):
        value, flag = getattr(options, info.name), flag_of(info.name)
        if info.name == leave_out or value == info.default:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, Mapping):
            words += [flag, *(key_value_text(key, item) for key, item in flatten(value))]
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def describe(info: OptionInfo) -> tuple[list[str], dict[str, Any]]:
    """The names and the other arguments of ``add_argument`` for an option."""
    hint = strip_none(info.hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    kind = args[0] if origin is tuple else hint
    names = [info.name] if info.positional else [flag_of(info.name), *info.aliases]
    result: dict[str, Any] = {"help": help_of(info).replace("%", "%%")}
    if not info.positional:
        result |= {"dest": info.name, "required": info.required}
    if hint is bool:
        action = argparse.BooleanOptionalAction if info.default is None else "store_true"
        return names, result | {"action": action}
    result["metavar"] = info.metavar or {int: "N", float: "X"}.get(kind)
    if origin is dict:
        return names, result | {"nargs": "+", "type": key_value}
    if is_union(hint):
        return names, result | {"type": number_or_word}
    may_be_absent = info.positional and not info.required
    if origin is tuple and args[-1] is Ellipsis:
        result["nargs"] = "*" if info.may_be_empty or may_be_absent else "+"
    elif origin is tuple:
        result["nargs"] = len(args)
    elif info.bare is not None or may_be_absent:
        result |= {"nargs": "?", "const": info.bare}
    is_choice = typing.get_origin(kind) is Literal
    return names, result | ({"choices": typing.get_args(kind)} if is_choice else {"type": kind})


def number_or_word(text: str) -> int | str:
    """An integer if the text is one; other text is checked by the class of options."""
    try:
        return int(text)
    except ValueError:
        return text


class KeyValue(NamedTuple):
    """A ``key=value`` of the command line."""

    key: str
    value: Any


def key_value(text: str) -> KeyValue:
    """Split ``key=value``; the value becomes a Python literal if it is one: ``bn_eps=1e-3``."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise argparse.ArgumentTypeError(f"expected key=value, got {text!r}")
    try:
        return KeyValue(key, ast.literal_eval(value))
    except (ValueError, SyntaxError):
        return KeyValue(key, value)


def key_value_text(key: str, value: Any) -> str:
    """The inverse of ``key_value``; a text has quotes only where it would be read as Python."""
    plain = f"{key}={value}"
    return plain if key_value(plain) == KeyValue(key, value) else f"{key}={value!r}"


def nested(name: str, pairs: Sequence[KeyValue]) -> Mapping[str, Any]:
    """Make a dict of pairs; a dotted key such as ``neck.padding`` makes a nested dict.

    Args:
        name: name of the option, for messages.
    """
    result: dict[str, Any] = {}
    for key, value in pairs:
        *groups, last = key.split(".")
        inner = result
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise OptionError(name, f"has {key}={value}, but {group} has a value already")
        inner[last] = value
    return result
