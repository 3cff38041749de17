"""Print what a user reads when something goes wrong with the hub, and how soon.

PYTHONPATH=.:tests/helpers python benchmarks/hub_errors.py [--only WORD]
"""

import argparse
import csv
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from hub_cases import LOADING, LOST, PUSHING, SLOW, Scene, files_of, tiny_model
from hub_server import HubServer, point_client_at

from sepc_zoo import HubError

CASES = {**LOADING, **SLOW, **PUSHING, **LOST}
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ["case", "seconds", "requests", "text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="run only cases with this word")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(tiny_model(), Path(folder))
    pushed = tiny_model()
    rows = [measure(name, pushed, files) for name in CASES if only in name]
    print("", row_of(COLUMNS), row_of(["---"] * len(COLUMNS)), *map(row_of, rows), sep="\n")
    if not only:
        with TABLE.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def measure(name: str, pushed: Any, files: dict[str, bytes]) -> list[Any]:
    """One row of the table: the error of a case, after how many seconds and requests."""
    with (
        tempfile.TemporaryDirectory() as home,
        pytest.MonkeyPatch.context() as patch,
        HubServer() as hub,
    ):
        point_client_at(hub, Path(home), patch)
        scene = Scene(hub, pushed, files, patch)
        start = time.perf_counter()
        with pytest.raises(HubError) as caught:
            CASES[name][0](scene)
        seconds = time.perf_counter() - start
        text = str(caught.value).replace(hub.endpoint, "https://huggingface.co")
        text = text.replace(hub.storage, "STORAGE").replace(home, "HF_HOME")
        text = " ".join(re.sub(r"[0-9a-f]{40,64}", "…", text).split())
        return [name, f"{seconds:.1f}", len(hub.requests), text]


def row_of(cells: list[Any]) -> str:
    return f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    main()
