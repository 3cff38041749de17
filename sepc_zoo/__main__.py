"""``python -m sepc_zoo`` is the command ``sepc-zoo``."""

import sys

from sepc_zoo.cli import main

if __name__ == "__main__":
    sys.exit(main())
