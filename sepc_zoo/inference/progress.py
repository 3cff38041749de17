"""The progress bar of all commands."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar; where the output is not a terminal, it prints once in 30 seconds."""
    return tqdm(*args, **kwargs, mininterval=0.2 if sys.stderr.isatty() else 30)
