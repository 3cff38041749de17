"""Print what a user reads when published weights cannot be downloaded, and how soon.

PYTHONPATH=.:tests/helpers:tests python benchmarks/download_errors.py [--only WORD]
"""

import argparse
import csv
import re
import tempfile
import time
from pathlib import Path

import pytest
from drive_server import Drive
from hub_errors import row_of
from hub_server import HubServer, point_client_at
from publisher_cases import QUICK, SLOW, Scene, checkpoints, tiny_rows
from publisher_server import Publisher

from sepc_zoo import HubError

CASES = {**QUICK, **SLOW}
TABLE = Path(__file__).with_suffix(".csv")
COLUMNS = ["case", "seconds", "requests", "left", "text"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", metavar="WORD", help="run only cases with this word")
    only = parser.parse_args().only
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        tiny_rows(patch)
        content = checkpoints(Path(folder))
    rows = [measure(name, content) for name in CASES if only in name]
    print("", row_of(COLUMNS), row_of(["---"] * len(COLUMNS)), *map(row_of, rows), sep="\n")
    if not only:
        with TABLE.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


def measure(name: str, content: dict[str, bytes]) -> list[str]:
    """One row of the table: the error of a case, and after how many seconds and requests."""
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        HubServer() as hub,
        Publisher() as publisher,
        Drive() as drive,
    ):
        point_client_at(hub, Path(folder) / "hf", patch)
        scene = Scene(publisher, drive, content, Path(folder) / "home", patch)
        start = time.perf_counter()
        with pytest.raises(HubError) as caught:
            CASES[name][0](scene)
        seconds = time.perf_counter() - start
        text = str(caught.value).replace(publisher.address, "https://PUBLISHER")
        text = text.replace(publisher.address.partition("//")[2], "PUBLISHER")
        text = re.sub(r"retinanet_test_efficientnet_pconv", "MODEL", text.replace(folder, "FOLDER"))
        text = text.replace("fsaf_test_efficientnet_pconv", "MODEL")
        requests, left = len(publisher.requests), len(scene.left_files())
        return [name, f"{seconds:.1f}", str(requests), str(left), " ".join(text.split())]


if __name__ == "__main__":
    main()
