"""Load of the server of examples/server: requests a second, errors, CPU time and memory.

    python -m benchmarks.serving --model model.onnx --images DIR --requests 1000 --clients 8

``--python`` is the interpreter that runs the server, such as that of an environment without torch.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from sepc_zoo.data.images import list_images
from sepc_zoo.export.runtime import write_runtime

SERVER = Path(__file__).parents[1] / "examples" / "server" / "server.py"
PARTS = 5  # rows that are printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="exported ONNX file")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to send")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8, help="requests at once")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--port", type=int, default=8766)
    args = parser.parse_args()
    images = [file.read_bytes() for file in list_images(args.images)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SERVER, folder)
        write_runtime(folder)
        shutil.copy(args.model, Path(folder) / "model.onnx")
        command = [args.python, "-m", "uvicorn", "server:app", "--log-level", "warning"]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        process = subprocess.Popen(
            [*command, "--port", str(args.port)], cwd=folder, env=environment
        )
        try:
            load(process, f"http://127.0.0.1:{args.port}", images, args.requests, args.clients)
        finally:
            process.terminate()
            process.wait()


def load(
    process: subprocess.Popen[bytes], url: str, images: list[bytes], requests: int, clients: int
) -> None:
    start, server = time.perf_counter(), psutil.Process(process.pid)
    with httpx.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(clients) as pool:
        while not is_up(client):
            assert process.poll() is None, "the server did not start"
            time.sleep(0.05)
        print(f"started in {time.perf_counter() - start:.1f} s")
        statuses: Counter[int] = Counter()
        count = requests // PARTS
        for _ in range(PARTS):
            wall, cpu = time.perf_counter(), sum(server.cpu_times()[:2])
            sent = [images[i % len(images)] for i in range(count)]
            statuses.update(
                pool.map(lambda data: client.post("/detect", content=data).status_code, sent)
            )
            wall, cpu = time.perf_counter() - wall, sum(server.cpu_times()[:2]) - cpu
            print(
                f"{count / wall:.1f} requests/s, {cpu / count * 1e3:.0f} ms CPU each, "
                f"{server.memory_info().rss / 1e6:.0f} MB, answers {dict(statuses)}",
                flush=True,
            )


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.ConnectError:
        return False


if __name__ == "__main__":
    main()
