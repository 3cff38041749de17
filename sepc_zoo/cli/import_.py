"""Download published weights, convert them, and keep them for predict, validate and train."""

from dataclasses import dataclass

from sepc_zoo.errors import ConfigError, UserError
from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.terminal import quoted, say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Import."""

    model: str = option(
        help="name of a model, such as fsaf_r50_sepc, or all", metavar="NAME", positional=True
    )
    source: str | None = option(
        None, "whose weights: sepc, openmmlab, universenet or torchvision", metavar="PUBLISHER"
    )
    file: str | None = option(None, "checkpoint that was downloaded before", metavar="CHECKPOINT")
    url: str | None = option(
        None,
        "address to download from, with {file}, {name} or {id} in it (default: SEPC_ZOO_MIRROR, or "
        "the publisher's)",
    )
    push: str | None = option(None, "organisation on the hub to upload the model to", metavar="ORG")


def run(arguments: Arguments) -> int:
    """Import one model or all; one that fails does not stop the others."""
    from sepc_zoo.checkpoints.sources import import_model
    from sepc_zoo.cli.publishing import push_or_say_how
    from sepc_zoo.published import PUBLISHED, PUBLISHERS

    source, is_all = arguments.source, arguments.model == "all"
    if source not in (None, *PUBLISHERS):
        raise OptionError("source", f"is {source!r}; there are {', '.join(PUBLISHERS)}")
    rows = [row for row in PUBLISHED.values() if source in (None, row.publisher)]
    names = [row.name for row in rows] if is_all else [arguments.model]
    if arguments.file is not None and is_all:
        raise ConfigError("--file is one checkpoint; give the name of its model instead of all")
    done, failed = [], []
    for name in names:
        try:
            folder = import_model(name, arguments.file, arguments.url, source, unless_kept=is_all)
        except UserError as error:
            if not is_all:
                raise
            failed.append(f"not done: {name}: {error}")
            continue
        done.append(name)
        say(f"{name}: {folder}", flush=True)
        if arguments.push is not None:
            problem = push_or_say_how(folder, f"{arguments.push}/{folder.name}")
            failed += [f"{name}: {problem}"] if problem else []
    if done:
        say(f"use it: sepc-zoo predict IMAGE --model {quoted(done[0])}")
    for line in failed:
        say(line, error=True)
    return 1 if failed else 0
