"""`sepc-zoo train` as a script; `accelerate launch scripts/train.py` works too."""

import sys

from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
