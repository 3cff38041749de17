"""Lazy imports: names of a package that are imported when they are first used (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package's ``__init__.py``.

    Args:
        package: the package's ``__name__``.
        homes: the module that defines each name; for a submodule, its package.
    """

    def get_attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(homes[name])
        try:
            value = getattr(home, name)
        except AttributeError:
            value = import_module(f"{homes[name]}.{name}")
        # An import sets a subpackage as an attribute; where one has the name, it stays.
        return vars(sys.modules[package]).setdefault(name, value)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get_attribute, list_names
