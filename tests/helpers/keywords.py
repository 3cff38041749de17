"""Writes sepc_zoo/api/keywords.pyi: the options as keyword arguments, for type checkers alone.

Start it after a change of options: ``python tests/helpers/keywords.py``.
"""

import typing
from pathlib import Path

import sepc_zoo
from sepc_zoo.api.options import EvaluationOptions
from sepc_zoo.options import PATHS, is_union, option_fields, strip_none
from sepc_zoo.training.options import TrainOptions

FILE = Path(sepc_zoo.__file__).parent / "api" / "keywords.pyi"
CLASSES_OF = {"train": TrainOptions, "validate": EvaluationOptions}
NAMED = {"train": (), "validate": ("data", "split")}  # options that the functions name themselves
# Trackers may be objects, which no file of options can name, and weights a dict.
SPECIAL = {
    "log_with": "str | GeneralTracker | Sequence[str | GeneralTracker]",
    "class_weights": "str | Sequence[str] | Mapping[str, float]",
}
HEAD = '''"""Options as keyword arguments, for type checkers; made by tests/helpers/keywords.py."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from accelerate.tracking import GeneralTracker

Source = str | os.PathLike[str]
'''


def annotation(hint, is_path):
    """What a caller may give for a field of this type: paths for texts, any sequence for tuples."""
    some = strip_none(hint)
    origin, args = typing.get_origin(some), typing.get_args(some)
    if some != hint:
        return f"{annotation(some, is_path)} | None"
    if is_union(some):
        return " | ".join(annotation(arg, is_path) for arg in args)
    if origin is tuple:
        item = annotation(args[0], is_path)
        return f"{item} | Sequence[{item}]" if args[0] is str else f"Sequence[{item}]"
    if origin is typing.Literal:
        return "Literal[" + ", ".join(f'"{word}"' for word in args) + "]"
    if origin is dict:
        return "Mapping[str, Any]"
    return "Source" if is_path and some is str else some.__name__


def content():
    """The text of the file."""
    lines = [HEAD]
    for function, cls in CLASSES_OF.items():
        lines += [f"class {function.title()}Keywords(TypedDict, total=False):"]
        lines += [f'    """The options of ``{cls.__name__}``."""', ""]
        for info in option_fields(cls):
            if info.name not in NAMED[function]:
                kind = SPECIAL.get(info.name) or annotation(info.hint, info.metavar in PATHS)
                lines.append(f"    {info.name}: {kind}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    FILE.write_text(content(), encoding="utf-8")
