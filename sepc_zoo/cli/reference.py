"""The reference of all commands as Markdown, made from their options."""

import importlib

from sepc_zoo.cli import COMMANDS, module_of
from sepc_zoo.options import markdown_tables
from sepc_zoo.terminal import say


def reference() -> str:
    """A section for each command: its help, and a table for each group of its options."""
    sections = ["# Commands"]
    for name in COMMANDS:
        command = importlib.import_module(module_of(name))
        sections += [f"## sepc-zoo {name}", (command.__doc__ or "").strip()]
        for cls in filter(None, (getattr(command.Arguments, "passes_on", None), command.Arguments)):
            sections += [f"### {title}\n\n{table}" for title, table in markdown_tables(cls)]
    return "\n\n".join(sections) + "\n"


if __name__ == "__main__":
    say(reference(), end="")
