"""Update the tables of README.md from the CSV files beside it.

A table stands between `<!-- table FILE.csv -->` and `<!-- end of FILE.csv -->`: those of `sepc-zoo
benchmark` have a column per part of a model, others the columns of their file, or those that the
first mark names: `<!-- table FILE.csv: column, column -->`.
"""

import csv
import re
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).parent
TABLE = re.compile(
    r"(<!-- table (?P<file>\S+\.csv)(?:: (?P<columns>.+?))? -->\n).*?(<!-- end of (?P=file) -->)",
    re.DOTALL,
)
MAX_RATIO = 100  # higher ones mean that the first model lacks the part
FRACTION = re.compile(r"-?\d+\.\d+(e-?\d+)?")
MAX_DIGITS = 1000  # larger numbers are rounded to whole ones
SETTING = ("batch_size", "height", "width", "precision", "compile", "channels_last", "device")


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(TABLE.sub(write, text))


def write(found: re.Match[str]) -> str:
    """Make what stands between two marks anew."""
    with (HERE / found["file"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = found["columns"].split(", ") if found["columns"] else [*rows[0]]
    if "part" in rows[0]:
        text = tables(rows)
    else:
        text = as_markdown(columns, [[plain(row[name]) for name in columns] for row in rows])
    return f"{found[1]}\n{text}\n{found[4]}"


def plain(cell: str) -> str:
    """A cell in Markdown; fractions have three digits."""
    if not FRACTION.fullmatch(cell):
        return cell.replace("|", "\\|")
    number = float(cell)
    return f"{number:.3g}" if abs(number) < MAX_DIGITS else f"{number:.0f}"


def tables(rows: list[dict[str, str]]) -> str:
    """Make a table for each setting."""
    parts = []
    for setting, group in groupby(rows, key=lambda row: [row[name] for name in SETTING]):
        parts.append(
            f"{describe(dict(zip(SETTING, setting, strict=True)))}\n\n{table(list(group))}"
        )
    return "\n".join(parts)


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
    lines = [[f"`{model}`", *(cells.get((model, part), "") for part in parts)] for model in models]
    return as_markdown(["model", *parts], lines)


def cell(row: dict[str, str]) -> str:
    """Milliseconds, the ratio to the first model, and the peak memory if measured."""
    ratio = float(row["ratio"])
    notes = [f"{ratio:.2f}"] if ratio < MAX_RATIO else []
    notes += [f"{row['peak_mib']} MiB"] if row["peak_mib"] else []
    milliseconds = f"{float(row['median_ms']):.0f}"
    return f"{milliseconds} ({', '.join(notes)})" if notes else milliseconds


def as_markdown(columns: list[str], lines: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
