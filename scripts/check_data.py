"""`sepc-zoo check-data` as a script."""

import sys

from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["check-data", *sys.argv[1:]]))
