"""Update the tables of README.md from the CSV files of `sepc-zoo benchmark`.

A table stands between `<!-- table FILE.csv -->` and `<!-- end of FILE.csv -->`.
"""

import csv
import re
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
TABLE = re.compile(r"(<!-- table (\S+\.csv) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
MAX_RATIO = 100  # higher ones mean that the first model lacks the part
SETTING = ("batch_size", "height", "width", "precision", "compile", "channels_last", "device")


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(TABLE.sub(lambda found: found[1] + tables(HERE / found[2]) + found[3], text))


def tables(path: Path) -> str:
    """Make a table for each setting in a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = []
    for setting, group in groupby(rows, key=lambda row: [row[name] for name in SETTING]):
        parts.append(
            f"{describe(dict(zip(SETTING, setting, strict=True)))}\n\n{table(list(group))}"
        )
    return "\n" + "\n".join(parts) + "\n"


def describe(setting: dict[str, str]) -> str:
    words = [f"Batch of {setting['batch_size']}, {setting['height']}x{setting['width']} pixels"]
    words += [setting["precision"], setting["device"]]
    if setting["compile"]:
        words.append(f"torch.compile ({setting['compile']})")
    if setting["channels_last"] == "True":
        words.append("channels last")
    return ", ".join(words) + ":"


def table(rows: list[dict[str, str]]) -> str:
    """Make a table with a row per model and a column per part."""
    parts = list(dict.fromkeys(row["part"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    cells = {(row["model"], row["part"]): cell(row) for row in rows}
    lines = [["model", *parts], ["---"] * (len(parts) + 1)]
    lines += [[f"`{model}`", *(cells.get((model, part), "") for part in parts)] for model in models]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(row: dict[str, str]) -> str:
    """Milliseconds, the ratio to the first model, and the peak memory if measured."""
    ratio = float(row["ratio"])
    notes = [f"{ratio:.2f}"] if ratio < MAX_RATIO else []
    notes += [f"{row['peak_mib']} MiB"] if row["peak_mib"] else []
    milliseconds = f"{float(row['median_ms']):.0f}"
    return f"{milliseconds} ({', '.join(notes)})" if notes else milliseconds


if __name__ == "__main__":
    main()
