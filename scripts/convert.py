"""`sepc-zoo convert` as a script."""

import sys

from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
