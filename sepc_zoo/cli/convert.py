"""Convert a checkpoint of another project to a model folder."""

from dataclasses import dataclass

from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.terminal import quoted, say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Conversion."""

    checkpoint: str = option(
        help="checkpoint as its authors published it", metavar="CHECKPOINT", positional=True
    )
    model: str = option(
        help="name of its model, such as fsaf_r50_sepc, or the publisher's own name of it",
        metavar="NAME",
    )
    source: str | None = option(
        None,
        "whose checkpoint: sepc, openmmlab, universenet or torchvision (default: by the name)",
        metavar="PUBLISHER",
    )
    output: str = option(help="model folder to write", metavar="DIR")


def run(arguments: Arguments) -> int:
    """Convert the checkpoint."""
    from sepc_zoo.checkpoints.convert import CONVERTERS
    from sepc_zoo.checkpoints.convert.pickles import read_state_dict
    from sepc_zoo.checkpoints.folder import save_model
    from sepc_zoo.published import publisher_of

    source = arguments.source or publisher_of(arguments.model)
    if source not in CONVERTERS:
        raise OptionError("source", f"is {source!r}; there are {', '.join(CONVERTERS)}")
    state = read_state_dict(arguments.checkpoint, arguments.model)
    model = CONVERTERS[source](state, arguments.model)
    folder = save_model(model, arguments.output)
    say(f"{folder}: {model.config.architecture}, {len(model.state_dict())} tensors")
    say(f"use it: sepc-zoo predict IMAGE --model {quoted(folder)}")
    return 0
