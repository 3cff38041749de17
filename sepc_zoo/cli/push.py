"""Upload a model folder to the Hugging Face Hub, and a Space that shows the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepc_zoo.options import OptionError, Options, option
from sepc_zoo.terminal import quoted, say


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Upload."""

    model: str = option(
        help="model folder, such as runs/cells/best", metavar="MODEL", positional=True
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
    handler: bool = option(
        False, "also upload handler.py, with which Inference Endpoints run the model"
    )
    space: str | None = option(
        None, "also upload a Space with a page that shows the model", metavar="ORG/NAME"
    )
    output: str | None = option(
        None,
        "write the files instead of uploading them: the Space's to DIR, the model's to DIR/model",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_repository("repo_id", self.repo_id)
        if self.space is not None:
            check_repository("space", self.space)


def run(arguments: Arguments) -> int:
    """Upload the folder and the Space and print their addresses, or write their files."""
    from sepc_zoo.checkpoints.layout import read_metrics
    from sepc_zoo.cli.publishing import Contents, push, push_space, write_repository
    from sepc_zoo.demo.space import write_space

    model, repo_id, space = Path(arguments.model), arguments.repo_id, arguments.space
    metrics = None if arguments.metrics is None else read_metrics(Path(arguments.metrics))
    contents = Contents(metrics, arguments.dataset, arguments.license, arguments.handler)
    if arguments.output is not None:
        output = Path(arguments.output)
        write_repository(model, output / "model", repo_id, contents)
        if space is not None:
            write_space(output, space, repo_id, arguments.license)
            say(f"try the page: python {quoted(output / 'app.py')}")
        say(f"{output}: the files are written, nothing is uploaded")
        return 0
    options: dict[str, Any] = {
        "private": arguments.private,
        "create_pr": arguments.create_pr,
        "commit_message": arguments.message,
    }
    address = push(model, repo_id, contents, revision=arguments.revision, **options)
    say(f"{address}\nuse it: sepc-zoo predict IMAGE --model hf-hub:{repo_id}")
    if space is not None:
        say(push_space(space, repo_id, arguments.license, **options))
    return 0


def check_repository(option_name: str, repo_id: str) -> None:
    """Raise an OptionError unless the name of a repository has the form ``org/name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        problem = None if "/" in repo_id else "expected ORG/NAME"
    except HFValidationError as error:
        problem = str(error)
    if problem:
        raise OptionError(option_name, f"is {repo_id!r}, no name of a repository: {problem}")
