"""Upload a model folder to the Hugging Face Hub."""

from dataclasses import dataclass
from pathlib import Path

from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.terminal import say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Upload."""

    model: str = option(
        help="model folder, such as runs/cells/best", metavar="DIR", positional=True
    )
    repo_id: str = option(
        help="repository, created if it does not exist", metavar="ORG/NAME", positional=True
    )
    private: bool | None = option(
        None, "make a new repository private (default: as the owner's settings say)"
    )
    revision: str | None = option(None, "branch to commit to (default: main)", metavar="BRANCH")
    create_pr: bool = option(False, "open a pull request instead of committing")
    metrics: str | None = option(
        None, "metrics.json of sepc-zoo validate, for the model card", metavar="FILE"
    )
    dataset: str | None = option(
        None, "data set of the metrics, for the model card", metavar="NAME"
    )
    license: str | None = option(
        None, "licence of the weights for the model card, such as apache-2.0", metavar="ID"
    )
    message: str = option("Upload a detector", "commit message")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_repository("repo_id", self.repo_id)


def run(arguments: Arguments) -> int:
    """Upload the folder and print its address."""
    from sepc_zoo.cli.publishing import push, read_metrics

    metrics = None if arguments.metrics is None else read_metrics(Path(arguments.metrics))
    address = push(
        Path(arguments.model),
        arguments.repo_id,
        metrics=metrics,
        dataset=arguments.dataset,
        license=arguments.license,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.message,
    )
    say(f"{address}\nuse it: sepc-zoo predict IMAGE --model hf-hub:{arguments.repo_id}")
    return 0


def check_repository(option_name: str, repo_id: str) -> None:
    """Check the name of a repository before anything is done for it.

    Raises:
        OptionError: it is not of the form ``org/name``.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        problem = None if "/" in repo_id else "expected ORG/NAME"
    except HFValidationError as error:
        problem = str(error)
    if problem:
        raise OptionError(option_name, f"is {repo_id!r}, no name of a repository: {problem}")
