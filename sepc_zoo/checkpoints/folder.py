"""Model folders: config.json, model.safetensors and README.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sepc_zoo import __version__
from sepc_zoo.checkpoints.card import model_card
from sepc_zoo.checkpoints.layout import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from sepc_zoo.config import DetectorConfig, UnknownEntriesError, config_from_json, config_to_json
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.files import write_atomically, write_json, write_text
from sepc_zoo.models.backbone import adapt_channels
from sepc_zoo.models.build import build
from sepc_zoo.models.detector import Detector

# Types by their names in safetensors; all that are not here are floating-point numbers.
DTYPES = {f"{sign}{bits}": torch.int64 for sign in "IU" for bits in (8, 16, 32, 64)}
DTYPES |= {"BOOL": torch.bool, "C64": torch.complex64}
MAX_CONFIG_BYTES = 2**24  # 100,000 classes need a third of it
MAX_TENSORS = 20_000  # timm's largest models have 3,000
MAX_CALLS = 60_000  # torch functions called to build a model; timm's largest need 34,000
MAX_TABLES = 2**28  # bytes of tensors that are computed and not saved; timm's models need 2**24


def save_model(
    model: Detector,
    directory: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    dataset: str | None = None,
    training: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
) -> Path:
    """Write a model folder, from which ``create_model("local-dir:…")`` builds the same model.

    An older file is replaced only by a complete new one.

    Args:
        model: a detector.
        directory: folder to write, created if missing.
        metrics: figures of ``validate``, for the model card.
        dataset: name of the data that ``metrics`` were measured on, for the card.
        training: how the model was trained, for the card.
        repo_id: repository that the folder will be pushed to, for the card.

    Returns:
        The folder.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    directory = Path(directory)
    # safetensors' save_file would make a file that only its owner can read.
    weights = weights_content(model)
    write_atomically(directory / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    write_json(directory / CONFIG_FILE, config_to_json(model.config))
    card = model_card(model.config, metrics, dataset, training, repo_id)
    write_text(directory / CARD_FILE, card)
    return directory


def weights_content(model: Detector) -> bytes:
    """The content of ``model.safetensors`` for a model."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    return save(state, {"format": "pt"})


def read_model(folder: Path, config: DetectorConfig | None = None) -> Detector:
    """Build the model of a folder with its weights, in eval mode.

    The folder may be untrusted: the model is first built without memory for its tensors, and they
    are compared with the header of the weights file before any tensor is read.

    Args:
        folder: folder with config and weights.
        config: config to build instead of the folder's; it must have the same tensors, but if it
            has another number of channels, the first convolution of a model for RGB is adapted.

    Raises:
        HubError: a file is damaged, the config describes no model or an absurdly large one, or
            tensors are missing, left over or misshapen; the message names the file.
        ConfigError: the given config describes no model.
    """
    file = folder / WEIGHTS_FILE
    own = read_config(folder)
    wanted = config or own
    shapes = read_shapes(file)

    def adapt(state: dict[str, Tensor]) -> dict[str, Tensor]:
        if wanted.backbone.in_chans == own.backbone.in_chans:
            return state
        return adapt_channels(state, wanted.backbone)

    try:
        with torch.device("meta"), BoundedBuilding():
            model = build(wanted)
        computed = has_computed_tensors(model)
        refuse_misfits(
            adapt(shapes), model.state_dict(), f"{file} does not fit {model.config.architecture}"
        )
        if computed:
            model = build(wanted)  # on the CPU, which computes the tensors that the file lacks
        else:
            model.to_empty(device="cpu")
        load_state(model, adapt(read_weights(file)), file)
        model.backbone.probe()
    except ConfigError as error:
        if config is not None:
            raise
        raise HubError(f"{folder / CONFIG_FILE} is no config of a model: {error}") from error
    return model.eval()


class BoundedBuilding(TorchFunctionMode):
    """Stop building a model with a ConfigError after ``MAX_CALLS`` calls of torch (seconds)."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise ConfigError("the model has too many layers")
        return func(*args, **(kwargs or {}))


def has_computed_tensors(model: nn.Module) -> bool:
    """Whether a model has tensors that its weights file lacks, or tensors with two names.

    More than ``MAX_TABLES`` bytes of them raise a ConfigError.
    """
    saved = {id(value) for value in model.state_dict(keep_vars=True).values()}
    computed = [
        value
        for module in model.modules()
        for value in [*module._buffers.values(), *vars(module).values()]
        if isinstance(value, Tensor) and id(value) not in saved
    ]
    size = sum(value.nbytes for value in computed)
    if size > MAX_TABLES:
        raise ConfigError(f"the model has {size} bytes of tables, {MAX_TABLES} at most")
    return bool(computed) or len(saved) < len(model.state_dict())


def read_config(folder: Path) -> DetectorConfig:
    """Read the config of a model folder; a HubError names the file and the wrong entry."""
    file = folder / CONFIG_FILE
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        return config_from_json(json.loads(file.read_text(encoding="utf-8")))
    except UnknownEntriesError as error:
        raise HubError(
            f"{file} is of a newer version than {__version__}, or no config of this library: "
            f"{error}; try `pip install -U sepc_zoo`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:  # ConfigError is a ValueError
        raise HubError(f"{file} is no config of a model: {error}") from error


def load_weights(model: Detector, file: Path) -> None:
    """Load a safetensors file strictly; a HubError names the damage or the tensors that misfit."""
    load_state(model, read_weights(file), file)


def load_state(model: Detector, state: Mapping[str, Tensor], file: Path) -> None:
    """Load the tensors of a file strictly; a HubError names those that misfit."""
    refuse_misfits(state, model.state_dict(), f"{file} does not fit {model.config.architecture}")
    model.load_state_dict(state)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; HubError if it is missing or damaged."""
    read_shapes(file)
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise HubError(unreadable(file, error)) from error


def read_shapes(file: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file: its tensors on the meta device, without values.

    Floating-point numbers of any size are float32, and integers int64. HubError as in
    ``read_weights``.
    """
    try:
        with safe_open(file, "pt") as content:
            keys = content.keys()
            if len(keys) > MAX_TENSORS:
                raise HubError(f"{file} has {len(keys)} tensors, {MAX_TENSORS} at most")
            slices = {key: content.get_slice(key) for key in keys}
            shapes = {key: (s.get_shape(), s.get_dtype()) for key, s in slices.items()}
    except (OSError, SafetensorError) as error:
        raise HubError(unreadable(file, error)) from error
    try:
        return {
            key: torch.empty(shape, device="meta", dtype=DTYPES.get(dtype))
            for key, (shape, dtype) in shapes.items()
        }
    except (RuntimeError, TypeError) as error:  # an empty tensor may claim sides of any length
        raise HubError(unreadable(file, "a tensor has an impossible shape")) from error


def unreadable(file: Path, why: object) -> str:
    return f"{file} cannot be read as safetensors: {why!s:.500}; download it again"


def refuse_misfits(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    text: str,
    error: type[Exception] = HubError,
) -> None:
    """Raise ``error`` with ``text`` and a line for each of the ``misfits``, if there are any."""
    if problems := misfits(state, wanted):
        raise error("\n".join([f"{text}:", *problems]))


def misfits(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], max_lines: int = 20
) -> list[str]:
    """Describe in a line each tensor that is missing, left over, misshapen or cannot be right."""
    shared = [(key, state[key], value) for key, value in wanted.items() if key in state]
    misshapen = [
        f"  {key} is {tuple(value.shape)!s:.200}, not {tuple(ours.shape)}"
        for key, value, ours in shared
        if value.shape != ours.shape
    ]
    impossible = [f"  {key} {reason}" for key, *pair in shared if (reason := why_impossible(*pair))]
    missing = [f"  missing: {key}" for key in wanted if key not in state]
    # These names are untrusted: escape line breaks and terminal codes.
    left_over = [f"  left over: {ascii(key)[1:-1]:.200}" for key in state if key not in wanted]
    problems = misshapen + impossible + missing + left_over
    if len(problems) <= max_lines:
        return problems
    return [*problems[:max_lines], f"  and {len(problems) - max_lines} more"]


def why_impossible(value: Tensor, wanted: Tensor) -> str:
    """The reason that the values of a tensor cannot be right, or ""; "meta" tensors have none."""
    # The number of batches is sometimes stored as a float, but weights never as integers.
    if wanted.is_floating_point() > value.is_floating_point() or value.is_complex():
        return (
            f"has values of type {str(value.dtype).removeprefix('torch.')}, which cannot be right"
        )
    if not value.is_meta and not value.isfinite().all():
        return "has values that are NaN or infinite"
    return ""
