"""A hook of mkdocs: pages that are made from the package, or stand elsewhere in the repository."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sepc_zoo.catalog import catalog
from sepc_zoo.cli.list import markdown_table, notes
from sepc_zoo.cli.reference import reference
from sepc_zoo.registry import list_models

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"benchmarks.md": "benchmarks/README.md", "coco.md": "recipes/README.md"}
MODELS = "<!-- table of published models -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of this folder."""
    texts = {page: (ROOT / file).read_text(encoding="utf-8") for page, file in ELSEWHERE.items()}
    for page, text in {**texts, "commands.md": reference()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links out of this folder to the pages of the site, and fill in the table of models."""
    for page, file in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{file}", f"]({page}")
    return markdown.replace(MODELS, published_models()) if MODELS in markdown else markdown


def published_models() -> str:
    """A Markdown table of the published checkpoints by AP, with their publishers."""
    entries = catalog(list_models(pretrained=True), "ap")
    return "\n".join([markdown_table(entries), "", *(f"- {line}" for line in notes(entries))])
