"""Time to import the package, compared with timm alone, and to build a detector.

Each figure is measured in a new interpreter; the rows take turns, so that other load affects all of
them. Ratios are medians over the rounds of the ratios of processor time, which depends least on
other load.

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
ROWS = {  # code to measure, and code to run before it
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
    parser.add_argument("--rounds", type=int, default=9, help="interpreters per row")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch when it builds a model"
    )
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for is_counted in [False] + [True] * args.rounds:  # the first round fills the file cache
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
