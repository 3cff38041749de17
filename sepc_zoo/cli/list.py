"""List names of models. Any timm backbone with strides 8, 16 and 32 works by its own name, too."""

from dataclasses import dataclass

from sepc_zoo.options import Options, option


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Selection."""

    filter: tuple[str, ...] = option(
        (), "wildcard patterns, such as '*_r50_sepc*'", positional=True, metavar="PATTERN"
    )
    exclude: tuple[str, ...] = option(
        (), "wildcard patterns of names to leave out", metavar="PATTERN"
    )
    pretrained: bool = option(False, "list only models with published weights")


def run(arguments: Arguments) -> int:
    """Print the names, one a line."""
    from sepc_zoo.registry import list_models

    for name in list_models(arguments.filter, arguments.pretrained, arguments.exclude):
        print(name)
    return 0
