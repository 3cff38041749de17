"""The command line: ``sepc-zoo COMMAND``, with a module of the same name for each command.

A module has ``add_arguments(parser)`` and ``run(args) -> exit status``; its docstring is the help.
"""

import argparse
import importlib
import keyword
import sys
from collections.abc import Sequence

from sepc_zoo.errors import UserError

COMMANDS = {
    "train": "train a model on your own data",
    "validate": "COCO mAP of a model on a data set",
    "predict": "boxes on photos",
    "convert": "a checkpoint of the SEPC authors to a model folder",
    "import": "what the SEPC authors published, for pretrained=True",
    "push": "a model folder to the Hugging Face Hub",
    "publish": "model folders, with a page for their organisation",
    "list": "names of models",
    "info": "what is known of a model",
    "check-data": "what is wrong with a data set, and a clean copy of it",
    "benchmark": "speed and memory of models, each beside the others",
}
DONE, PARTLY_DONE, WRONG_INPUT = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: ``main(["predict", "street.jpg", "--model", "runs/best"])``.

    Returns:
        0 done, 1 done but for what is listed, 2 wrong usage or input, 130 or 143 interrupted.
    """
    # not list(…): importing the command of that name puts its module in the builtin's place here
    arguments = [*(sys.argv[1:] if arguments is None else arguments)]
    if not arguments or arguments[0] not in COMMANDS:
        asked_for_help = arguments[:1] in (["-h"], ["--help"])
        print(_usage(), file=sys.stdout if asked_for_help else sys.stderr)
        return DONE if asked_for_help else WRONG_INPUT
    name, *rest = arguments
    module = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    command = importlib.import_module(f"sepc_zoo.cli.{module}")
    parser = argparse.ArgumentParser(f"sepc-zoo {name}", description=command.__doc__)
    command.add_arguments(parser)
    args = parser.parse_args(rest)
    try:
        return command.run(args)
    except (UserError, OSError) as error:
        print(f"sepc-zoo {name}: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return 130


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    more = "sepc-zoo COMMAND --help tells the options of a command."
    return "\n".join(["usage: sepc-zoo COMMAND [OPTION ...]", "", *rows, "", more])
