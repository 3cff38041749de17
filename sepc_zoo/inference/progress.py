"""The progress bar of all commands."""

import sys
import warnings
from typing import Any

from tqdm import TqdmWarning, tqdm


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """Return tqdm's bar; without a terminal or a notebook, it prints once in 30 seconds."""
    if in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # a bar of text without ipywidgets
            from tqdm.auto import tqdm as notebook_tqdm
        return notebook_tqdm(*args, **kwargs, mininterval=0.5)
    return tqdm(*args, **kwargs, mininterval=0.2 if sys.stderr.isatty() else 30)


def in_notebook() -> bool:
    """Whether the program runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
