"""Text of others does not control the terminal, wherever a command prints it."""

import json
import re
from io import StringIO

import pytest
from commands import call
from faulty import write_good_data
from rich.table import Table

from sepc_zoo.checkpoints.card import model_card
from sepc_zoo.config import override
from sepc_zoo.factory import create_model
from sepc_zoo.terminal import make_console, printable, say, shorten

CODES = "\x1b[31m\x1b]0;title\x07\x9b2J\r\x08\u202e"


def test_control_characters_are_escaped_and_lines_stay_lines():
    assert printable("caf\xe9\tdog\n\u732b") == "caf\xe9\tdog\n\u732b"
    assert printable("\x1b[2J\r\x9b\u202e\udce9") == r"\x1b[2J\r\x9b\u202e\udce9"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "none"), (2, "2 (a, b)"), (10, "10 (a, b, c, d, e, f, g, h and 2 more)")],
)
def test_many_names_are_shortened(count, text):
    assert shorten("abcdefghij"[:count]) == text


def test_say_and_the_console_escape_what_they_print(capsys):
    say("name", CODES)
    say(CODES, error=True)
    file = StringIO()
    table = Table(CODES)
    table.add_row(f"[bold]{CODES}[/]")
    make_console(file=file, width=200).print(table)
    for text in (*capsys.readouterr(), file.getvalue()):
        assert text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


@pytest.fixture
def odd_data(tmp_path):
    """A data set whose class and file are named to control a terminal."""
    root = write_good_data(tmp_path / "data")
    for file in (root / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = f"cat{CODES}"
        image = content["images"][0]
        new = f"\x1b[2J{image['file_name']}"
        split = file.stem.removeprefix("instances_")
        (root / split / image["file_name"]).rename(root / split / new)
        image["file_name"] = new
        file.write_text(json.dumps(content))
    return root


def test_no_command_passes_terminal_codes_of_a_data_set_on(odd_data, tmp_path, capsys):
    run, flags = tmp_path / "run", ("--device", "cpu", "--workers", 0)
    tiny = ("--model", "retinanet_mnv4s_pconv", "--model-kwargs", "channels=16")
    short = ("--image-size", 64, 64, "--epochs", 1, "--log-with")
    commands = [
        ("check-data", odd_data, "--output", tmp_path / "report", "--samples", 0),
        ("train", "--data", odd_data, *tiny, *short, *flags, "--output", run),
        ("validate", "--model", run / "best", "--data", odd_data, *flags, "--output", tmp_path),
        ("info", run / "best"),
        ("predict", odd_data / "val", "--model", run / "best", "--output", tmp_path / "boxes"),
        ("train", "--data", tmp_path / "\x1b[31mno", *tiny),
    ]
    for command in commands:
        call(*command)
        said = "".join(capsys.readouterr())
        # the bar of progress moves the cursor
        found = re.search(r"\x1b(?!\[A)|[\x07\x08\x9b\u202e]", said)
        assert found is None, (command[0], said[found.start() - 80 : found.end() + 20])


def test_markdown_of_others_is_text_in_a_card():
    config = create_model("retinanet_test_efficientnet_pconv", num_classes=1).config
    weights = {"authors_ap": 40.0, "source": "[click](javascript:x) <script> `rm`"}
    card = model_card(override(config, {"weights": weights}))
    assert "[click]" not in card
    assert "<script>" not in card
    address = "https://github.com/a_b/c_d"
    card = model_card(override(config, {"weights": weights | {"source": address}}))
    assert f"Source: {address}" in card
