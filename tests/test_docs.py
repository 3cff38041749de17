"""The pages of docs/: complete, and true to the package."""

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

import sepc_zoo
from sepc_zoo.cli import COMMANDS, module_of
from sepc_zoo.cli.arguments import make_parser

PACKAGE = Path(sepc_zoo.__file__).parent
ROOT = PACKAGE.parent
DOCS = ROOT / "docs"
EXAMPLES = [*(ROOT / "examples").glob("*.py")]
PAGES = [ROOT / "README.md", *DOCS.glob("*.md")]
GENERATED = {"benchmarks.md", "coco.md", "commands.md"}
# Messages of other programs that the FAQ explains.
FOREIGN = {"operator torchvision::nms does not exist", "sepc-zoo: command not found"}

FOREIGN_FLAGS = {
    *("--multi_gpu", "--num_processes", "--nproc_per_node", "--nnodes", "--rdzv-backend"),
    *("--rdzv-endpoint", "--shm-size", "--upgrade", "--data-binary", "--port", "--rm"),
}


def read(page):
    return (DOCS / page).read_text(encoding="utf-8")


def pages_of(nav):
    for entry in nav:
        for value in entry.values():
            yield from pages_of(value) if isinstance(value, list) else [value]


def message_texts():
    """All texts in the package, with … for what is filled in."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "…") for part in node.values)
                yield "".join(part if isinstance(part, str) else "…" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_navigation_has_existing_pages():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [*pages_of(config["nav"])]
    assert len({*pages}) == len(pages)
    assert {*pages} - GENERATED - {path.name for path in DOCS.glob("*.md")} == set()


def test_the_reference_has_every_public_name():
    text = read("api.md")
    missing = {name for name in sepc_zoo.__all__ if f"sepc_zoo.{name}" not in text}
    assert missing == {"__version__"}


def test_the_faq_quotes_messages_that_the_package_has():
    headings = re.findall(r"^### (.*)$", read("faq.md"), re.MULTILINE)
    quoted = {text.strip("…,: ") for line in headings for text in re.findall(r"`([^`]+)`", line)}
    texts = "\n".join(message_texts())
    assert {text for text in quoted - FOREIGN if text not in texts} == set()


def test_pages_include_files_that_exist():
    pages = [path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")]
    lines = [line for text in pages for line in text.splitlines() if "8" in line and "<" in line]
    assert not [line for line in lines if re.search(r"--\s*8\s+<|8<\s+-", line)]  # as Python code
    files = [file for t in pages for file in re.findall(r"--8<--\n\s+(\S+)\n\s+--8<--", t)]
    assert {path.name for path in EXAMPLES} == {Path(file).name for file in files}
    assert all((ROOT / file).is_file() for file in files)


def anchors_of(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_are_closed_and_lead_to_a_file_and_heading(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]*.)", page.read_text(encoding="utf-8")):
        target, _, anchor = link[:-1].partition("#")
        file = page.parent / target if target else page
        is_elsewhere = "://" in target or target in GENERATED
        is_there = file.exists() and (not anchor or anchor in anchors_of(file))
        if not (link.endswith(")") and (is_elsewhere or is_there)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_that_train_say_what_to_start_from(page):
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    trains = re.compile(r"(sepc-zoo|sepc_zoo) (train|tune) .*--data |scripts/train\.py .*--data ")
    start = re.compile(r"--(model|finetune|resume|config) ")
    assert [line for line in lines if trains.search(line) and not start.search(line)] == []


@cache
def known_flags():
    commands = (importlib.import_module(module_of(name)) for name in COMMANDS)
    parsers = (make_parser("", "", command.Arguments) for command in commands)
    return {flag for parser in parsers for flag in parser._option_string_actions}


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_flags_in_the_pages_exist(page):
    used = {flag.rstrip("-") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", read(page))}
    assert used - known_flags() - FOREIGN_FLAGS == set()
