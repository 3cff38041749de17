"""``sepc-zoo benchmark`` with the yardsticks of ``yardsticks.py``.

python -m benchmarks.speed --model retinanet_r50_sepc plain:retinanet_r50_sepc --train
"""

import sys

import benchmarks.yardsticks  # noqa: F401 -- registers their names
from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
