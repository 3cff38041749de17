"""`sepc-zoo validate` as a script; `accelerate launch scripts/validate.py` works too."""

import sys

from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["validate", *sys.argv[1:]]))
