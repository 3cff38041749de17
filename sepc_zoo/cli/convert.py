"""A checkpoint that the SEPC authors published (mmdetection 1.1) to a model folder."""

import argparse

from sepc_zoo.checkpoints.convert.sepc_authors import from_authors, read_authors_checkpoint
from sepc_zoo.checkpoints.folder import save_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT.pth", help="as the authors published it")
    parser.add_argument("--model", required=True, metavar="NAME", help="such as fsaf_r50_sepc")
    parser.add_argument("--output", required=True, metavar="DIR", help="the model folder")


def run(args: argparse.Namespace) -> int:
    model = from_authors(read_authors_checkpoint(args.checkpoint, args.model), args.model)
    folder = save_model(model, args.output)
    print(f"{folder}: {model.config.architecture}, {len(model.state_dict())} tensors")
    print(f"use it: sepc-zoo predict PHOTO --model {folder}")
    return 0
