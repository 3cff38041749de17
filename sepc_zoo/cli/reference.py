"""The reference of all commands as Markdown, made from their options."""

import importlib
from collections.abc import Iterator

from sepc_zoo.cli import COMMANDS, module_of
from sepc_zoo.cli.arguments import classes_of
from sepc_zoo.options import Options, default_text, option_groups, type_name
from sepc_zoo.terminal import say

INTRODUCTION = (
    "An option `image_size` is `--image-size` on the command line and `image_size` in a YAML file; "
    "one that is true or false and has no default also has a flag with `--no-`."
)


def reference() -> str:
    """A section for each command: its help, and a table for each group of its options."""
    sections = [f"# Commands\n\n{INTRODUCTION}"]
    for name in COMMANDS:
        command = importlib.import_module(module_of(name))
        sections += [f"## sepc-zoo {name}", (command.__doc__ or "").strip()]
        for cls in classes_of(command.Arguments):
            sections += [f"### {title}\n\n{table}" for title, table in markdown_tables(cls)]
    return "\n\n".join(sections) + "\n"


def markdown_tables(cls: type[Options]) -> Iterator[tuple[str, str]]:
    """A Markdown table for each group of options, with the title of the group."""
    for title, infos in option_groups(cls).items():
        rows = ["| option | type | range | default | meaning |", "| --- | --- | --- | --- | --- |"]
        for info in infos:
            shown = "required" if info.required else default_text(info.default)
            cells = [type_name(info.hint), info.range, shown, info.help]
            escaped = (cell.replace("|", r"\|") for cell in cells)
            rows.append(f"| `{info.name}` | {' | '.join(escaped)} |")
        yield title, "\n".join(rows)


if __name__ == "__main__":
    say(reference(), end="")
