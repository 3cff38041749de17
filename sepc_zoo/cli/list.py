"""Names of models. Any other timm backbone with strides 8, 16 and 32 works by its own name."""

import argparse

from sepc_zoo.registry import list_models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("filter", nargs="*", help="wildcard patterns, such as '*_r50_sepc*'")
    parser.add_argument("--exclude", nargs="+", default=[], help="patterns of what to leave out")
    parser.add_argument("--pretrained", action="store_true", help="only with published weights")


def run(args: argparse.Namespace) -> int:
    for name in list_models(args.filter, args.pretrained, args.exclude):
        print(name)
    return 0
