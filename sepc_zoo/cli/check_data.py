"""Check a data set: report what is wrong and what is in it, and write a clean copy.

Every image is decoded and every box is checked; findings.csv, statistics.json and pictures go to
--output. An error is a problem that training would refuse, a warning one that it would accept. The
exit status is 1 if there are errors. The data set itself is never changed.
"""

from dataclasses import dataclass
from pathlib import Path

from sepc_zoo.errors import ConfigError
from sepc_zoo.options import option
from sepc_zoo.terminal import make_console, say
from sepc_zoo.training.options import FormatOptions


@dataclass(frozen=True, kw_only=True)
class Arguments(FormatOptions):
    """Check."""

    data: str = option(
        help="data set, in any layout that train reads", metavar="DATA", positional=True
    )
    split: tuple[str, ...] | None = option(
        None, "names of the splits to check (default: all)", metavar="NAME"
    )
    output: str = option("data_check", "folder to write", metavar="DIR")
    fix: str | None = option(
        None, "new folder for a clean copy of the data in COCO format", metavar="OUT"
    )
    link: bool = option(False, "hard-link the images of the clean copy where possible")
    shown: int = option(5, "number of lines to print for each kind of finding", ge=0)
    samples: int = option(12, "number of images in samples.png", ge=0)
    seed: int = option(0, "seed of the choice of samples", ge=0)


def run(arguments: Arguments) -> int:
    """Check the data, write the results, and print a summary."""
    from sepc_zoo.cli.data_report import show_findings, write_samples, write_statistics
    from sepc_zoo.data.quality.check import Finding, check_data
    from sepc_zoo.data.quality.fix import clean_listing, write_clean_copy
    from sepc_zoo.files import write_csv
    from sepc_zoo.inference.progress import progress_bar

    root, output = Path(arguments.data), Path(arguments.output)
    target = Path(arguments.fix) if arguments.fix else None
    check_places(root, output, target)
    console = make_console()
    check = check_data(root, arguments.split, progress_bar, arguments.format)
    write_csv(output / "findings.csv", Finding._fields, check.findings)
    for split, parts in check.joint.items():
        say(f"{split} is {' and '.join(parts)} together; figures and samples are of these")
    clean = {
        split: clean_listing(listing, check.files)
        for split, listing in check.listings.items()
        if split not in check.joint
    }
    written = ["findings.csv", *write_statistics(clean, output, console)]
    samples = output / "samples.png"
    if arguments.samples and write_samples(clean, samples, arguments.samples, arguments.seed):
        written.append("samples.png")
    show_findings(check, arguments.shown, console)
    say(f"{', '.join(written)} are in {output}")
    if target:
        changes = write_clean_copy(check, target, arguments.link, progress_bar)
        say(f"{target} is a clean copy; its changes.csv lists {len(changes)} changes")
    return 1 if check.has_errors() else 0


def check_places(root: Path, output: Path, target: Path | None) -> None:
    """Raise a ConfigError for an output inside the data set, or a clean copy over a folder."""
    from sepc_zoo.data.quality.fix import is_inside

    for flag, path in (("--output", output), ("--fix", target)):
        if path and root.exists() and is_inside(path, root):
            raise ConfigError(f"{flag} {path} is inside the data set; choose another folder")
    if target and (target.exists() or target.resolve() == output.resolve()):
        raise ConfigError(f"--fix {target} exists already, or is --output; choose a new folder")
