"""The command line: ``sepc-zoo COMMAND``, with a module for each command.

A module has ``Arguments``, a class of options, and ``run(arguments) -> exit status``; its docstring
is the help. Heavy libraries are imported by ``run``, so that ``--help`` is quick.
"""

import argparse
import difflib
import importlib
import keyword
import os
import sys
from collections.abc import Sequence

import sepc_zoo
from sepc_zoo.cli.arguments import make_parser, parse
from sepc_zoo.cli.inputs import check_inputs
from sepc_zoo.errors import UserError
from sepc_zoo.options import OptionError, flag_of
from sepc_zoo.terminal import say
from sepc_zoo.training.resilience.signals import Interrupted

COMMANDS = {
    "suggest": "suggest model, image size and options for your own data",
    "train": "train a model on your own data",
    "tune": "search for the options of train with the highest AP",
    "validate": "measure the COCO mAP of a model on a data set",
    "compare": "compare two models on the same images",
    "predict": "detect objects in images",
    "demo": "show a model on a web page of this machine",
    "export": "write a detector as one file for ONNX Runtime, OpenVINO or torch.export",
    "convert": "convert a checkpoint of another project to a model folder",
    "import": "fetch and convert published weights, for pretrained=True",
    "push": "upload a model folder to the Hugging Face Hub, and a Space that shows it",
    "publish": "upload model folders and a page that lists them",
    "list": "list models with size, operations, AP and licence",
    "info": "show size, operations, classes, AP and metrics of a model",
    "check-data": "find what is wrong with a data set, and write a clean copy",
    "label": "add a model's boxes of the classes that a data set lacks, in a copy",
    "benchmark": "measure speed and memory of models side by side",
}
DONE, WRONG_INPUT, INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command: ``main(["predict", "street.jpg", "--model", "runs/best"])``.

    Args:
        arguments: those of the process by default.

    Returns:
        0 done, 1 done but for what is listed, 2 wrong usage or input, 130 or 143 interrupted.
    """
    # The builtin list is hidden here by the module of the command "list", once that is imported.
    name, *rest = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if name in ("-h", "--help"):
        say(usage())
        return DONE
    if name == "--version":
        say(f"sepc-zoo {sepc_zoo.__version__}")
        return DONE
    if name not in COMMANDS:
        say(refusal(name), error=True)
        return WRONG_INPUT
    command = importlib.import_module(module_of(name))
    parser = make_parser(f"sepc-zoo {name}", command.__doc__ or "", command.Arguments)
    try:
        options = parse(parser, command.Arguments, rest)
    except OptionError as error:
        parser.error(option_problem(error, parser))
    try:
        check_inputs(options)
        return command.run(options)
    except OptionError as error:
        problem = option_problem(error, parser)
    except BrokenPipeError:  # the reader has seen enough, such as `sepc-zoo list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Interrupted as interrupted:
        from accelerate import PartialState

        if PartialState().is_main_process:
            say(interrupted, error=True)
        return interrupted.status
    say(f"sepc-zoo {name}: {problem}", error=True)
    return WRONG_INPUT


def option_problem(error: OptionError, parser: argparse.ArgumentParser) -> str:
    """The message for a wrong option, with its name on the command line."""
    metavars = {action.dest: action.metavar for action in parser._get_positional_actions()}
    return f"{metavars.get(error.name) or flag_of(error.name)} {error.text}"


def module_of(command: str) -> str:
    """The module of a command."""
    name = command.replace("-", "_")
    return f"sepc_zoo.cli.{name}_" if keyword.iskeyword(name) else f"sepc_zoo.cli.{name}"


def usage() -> str:
    """The help of the program."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    more = "sepc-zoo COMMAND --help lists the options of a command, sepc-zoo --version the version."
    return "\n".join(["usage: sepc-zoo COMMAND [OPTION ...]", "", *rows, "", more])


def refusal(name: str) -> str:
    """The message for an unknown command, with the nearest one."""
    if not name:
        return usage()
    near = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"sepc-zoo: no command {name!r}{hint}\ncommands: {', '.join(COMMANDS)}"
