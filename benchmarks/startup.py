"""Time to import the package, against timm alone, and to build a detector after it.

Every figure is of a fresh interpreter; the rows take turns, so that what else the machine does
falls on all of them alike. Ratios are the medians of the rounds' ratios of the processor's time,
which other work changes least.

    python benchmarks/startup.py
"""

import argparse
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import timm
import torch
import torchvision

TABLE = Path(__file__).with_suffix(".csv")
CREATE = "sepc_zoo.create_model('retinanet_r50_sepc')"
ROWS = {  # what is measured, and what is done before
    "import torch": "",
    "import timm": "",
    "import sepc_zoo": "",
    CREATE: "import torch; torch.set_num_threads(int(sys.argv[1])); import sepc_zoo",
}
CODE = """
import sys, time
{before}
wall, cpu = time.perf_counter(), time.process_time()
{timed}
print(time.perf_counter() - wall, time.process_time() - cpu)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="fresh interpreters for each row")
    parser.add_argument("--threads", type=int, default=1, help="of torch, where a model is built")
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for is_counted in [False] + [True] * args.rounds:  # the first brings the files into memory
        for name in ROWS:
            times[name] += [measure(name, args.threads)] * is_counted
    middle = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    header = "what,seconds,least,cpu_seconds,times_timm,rounds,threads,torch,torchvision,timm,cpu"
    facts = args.rounds, args.threads, torch.__version__, torchvision.__version__, timm.__version__
    lines = [header]
    for name, (wall, cpu) in middle.items():
        pairs = zip(times[name], times["import timm"], strict=True)
        of_timm = statistics.median(row[1] / timm_row[1] for row, timm_row in pairs)
        ratio = f"{of_timm:.3f}" if name.startswith("import") else ""
        figures = f"{wall:.3f}", f"{min(times[name])[0]:.3f}", f"{cpu:.3f}", ratio
        lines.append(",".join(map(str, (f'"{name}"', *figures, *facts, platform.machine()))))
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text())


def measure(name: str, threads: int) -> tuple[float, float]:
    """Seconds by the clock and of the processor that a row takes in an interpreter of its own."""
    code = CODE.format(before=ROWS[name], timed=name)
    command = [sys.executable, "-c", code, str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, cpu = map(float, done.stdout.split())
    return wall, cpu


if __name__ == "__main__":
    main()
