"""Fetch what the SEPC authors published, convert it, and keep it for ``pretrained=True``."""

import argparse
import sys

from sepc_zoo.checkpoints.convert.sepc_authors import CheckpointError
from sepc_zoo.checkpoints.sources import import_model
from sepc_zoo.cli.push import push_or_say_how
from sepc_zoo.errors import UserError
from sepc_zoo.registry import AUTHORS_WEIGHTS, DRIVE_URL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME", help="such as fsaf_r50_sepc; or all")
    parser.add_argument("--file", metavar="CHECKPOINT.pth", help="that was downloaded before")
    parser.add_argument(
        "--url",
        default=DRIVE_URL,
        help="to download from, with {id} or {name} (default %(default)s)",
    )
    parser.add_argument("--push", metavar="ORG", help="put it on the hub as ORG/NAME.coco_1x, too")


def run(args: argparse.Namespace) -> int:
    names = list(AUTHORS_WEIGHTS) if args.model == "all" else [args.model]
    if args.file is not None and len(names) > 1:
        raise CheckpointError("--file is one checkpoint; name its model")
    done, failed = [], []
    for name in names:
        try:
            folder = import_model(name, args.file, args.url)
        except UserError as error:
            if len(names) == 1:
                raise
            failed.append(f"not done: {name}: {error}")
            continue
        done.append(name)
        print(f"{name}: {folder}", flush=True)
        if args.push is not None:
            problem = push_or_say_how(folder, f"{args.push}/{folder.name}")
            failed += [f"{name}: {problem}"] if problem else []
    if done:
        print(f"use it: sepc-zoo predict PHOTO --model {done[0]}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0
