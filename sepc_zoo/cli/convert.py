"""Convert a checkpoint that the SEPC authors published (mmdetection 1.1) to a model folder."""

from dataclasses import dataclass

from sepc_zoo.options import Options, option


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Conversion."""

    checkpoint: str = option(
        help="checkpoint as its authors published it", metavar="CHECKPOINT.pth", positional=True
    )
    model: str = option(help="name of its model, such as fsaf_r50_sepc", metavar="NAME")
    output: str = option(help="model folder to write", metavar="DIR")


def run(arguments: Arguments) -> int:
    """Convert the checkpoint."""
    from sepc_zoo.checkpoints.convert.sepc_authors import from_authors, read_authors_checkpoint
    from sepc_zoo.checkpoints.folder import save_model

    state = read_authors_checkpoint(arguments.checkpoint, arguments.model)
    model = from_authors(state, arguments.model)
    folder = save_model(model, arguments.output)
    print(f"{folder}: {model.config.architecture}, {len(model.state_dict())} tensors")
    print(f"use it: sepc-zoo predict IMAGE --model {folder}")
    return 0
