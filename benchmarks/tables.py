"""Update the tables of README.md from the CSV files of `sepc-zoo benchmark` and `export.py`.

A table stands between `<!-- table FILE.csv -->` and `<!-- end of FILE.csv -->`.
"""

import csv
import re
from itertools import groupby
from operator import itemgetter
from pathlib import Path

HERE = Path(__file__).parent
TABLE = re.compile(r"(<!-- table (\S+\.csv) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
MAX_RATIO = 100  # higher ones mean that the first model lacks the part
EXPORT_COLUMNS = ("model", "conventions", "format", "sets equal", "detections")
EXPORT_FIGURES = {  # further columns: from where, unit, and how it is written
    "score": ("max_score_difference", 1, ".0e"),
    "box, pixels": ("max_box_difference", 1, ".0e"),
    "MB": ("bytes", 1e6, ".1f"),
    "CPU s": ("cpu_seconds", 1, ".0f"),
}
SETTING = ("batch_size", "height", "width", "precision", "compile", "channels_last", "device")


def main() -> None:
    readme = HERE / "README.md"
    text = readme.read_text()
    readme.write_text(TABLE.sub(lambda found: found[1] + tables(HERE / found[2]) + found[3], text))


def tables(path: Path) -> str:
    """Make the table of exports, or one for each setting in a CSV file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if "sets_equal" in rows[0]:
        return f"\n{export_table(rows)}\n"
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
    lines = [[f"`{model}`", *(cells.get((model, part), "") for part in parts)] for model in models]
    return as_markdown(["model", *parts], lines)


def cell(row: dict[str, str]) -> str:
    """Milliseconds, the ratio to the first model, and the peak memory if measured."""
    ratio = float(row["ratio"])
    notes = [f"{ratio:.2f}"] if ratio < MAX_RATIO else []
    notes += [f"{row['peak_mib']} MiB"] if row["peak_mib"] else []
    milliseconds = f"{float(row['median_ms']):.0f}"
    return f"{milliseconds} ({', '.join(notes)})" if notes else milliseconds


def export_table(rows: list[dict[str, str]]) -> str:
    """Make a table with a row per exported file, sorted by format, conventions and model."""
    lines = []
    for row in sorted(rows, key=itemgetter("format", "conventions", "model")):
        names = [f"`{row[name]}`" if row[name] else "" for name in ("model", "conventions")]
        equal = f"no: {row['problem']}" if row["problem"] else row["sets_equal"]
        figures = [
            f"{float(row[name]) / unit:{style}}" if row[name] else ""
            for name, unit, style in EXPORT_FIGURES.values()
        ]
        lines.append([*names, row["format"], equal, row["detections"], *figures])
    return as_markdown([*EXPORT_COLUMNS, *EXPORT_FIGURES], lines)


def as_markdown(columns: list[str], lines: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
