"""Programs in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run_python(*arguments, **environment):
    """Run Python with the package and the tests' helpers on its path; it has to end with 0."""
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS / "helpers", TESTS)))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done
