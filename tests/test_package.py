import ast
import inspect
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import sepc_zoo

PACKAGE = Path(sepc_zoo.__file__).parent
HEAVY = {
    *("accelerate", "datasets", "faster_coco_eval", "matplotlib", "onnx", "pycocotools", "rich"),
    *("supervision", "tensorboard", "torchmetrics"),
}

# Imports run downwards only: a package may import those after it.
LAYERS = ["cli", "training", "evaluation", "checkpoints", "models", "inference", "data", "ops"]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_importing_the_package_leaves_heavy_libraries_alone():
    code = "import sys, sepc_zoo; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY & {*done.stdout.split()} == set()


def test_nothing_outside_of_cli_imports_cli():
    users = [
        path
        for path in modules()
        if path.parent.name != "cli"
        and any(name.startswith("sepc_zoo.cli") for name in imported(path))
    ]
    assert users == []


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_downwards(layer):
    above = tuple(f"sepc_zoo.{name}." for name in LAYERS[: LAYERS.index(layer)])
    upwards = [
        f"{path.name} imports {name}"
        for path in (PACKAGE / layer).glob("*.py")
        for name in imported(path)
        if name.startswith(above)
    ]
    assert upwards == []


def test_data_does_not_know_the_model():
    users = [
        path.name
        for path in (PACKAGE / "data").glob("*.py")
        if any(name.startswith(("sepc_zoo.models", "sepc_zoo.methods")) for name in imported(path))
    ]
    assert users == []


@pytest.mark.parametrize("name", sorted({*sepc_zoo.__all__} - {"__version__"}))
def test_every_public_name_is_documented(name):
    value = getattr(sepc_zoo, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # a dataclass' or a NamedTuple's own


def test_all_names_the_fixed_public_surface():
    surface = {
        *("create_model", "load_model", "save_model", "list_models", "list_backbones", "is_model"),
        *("model_info", "register_model", "convert", "Detections", "Predictions"),
    }
    assert surface <= {*sepc_zoo.__all__}
    assert sorted(sepc_zoo.__all__) == sepc_zoo.__all__


def test_every_module_is_documented():
    sources = {path: path.read_text(encoding="utf-8") for path in modules()}
    undocumented = [
        path.name
        for path, text in sources.items()
        if text and not ast.get_docstring(ast.parse(text))
    ]
    assert undocumented == []


def test_what_the_package_imports_is_among_its_requirements():
    names = {"PIL": "pillow", "yaml": "pyyaml", "faster_coco_eval": "faster-coco-eval"}
    config = ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    extras = "".join(config["options.extras_require"].values())
    listed = (config["options"]["install_requires"] + extras).lower()
    roots = {name.split(".")[0] for path in modules() for name in imported(path)}
    given = {*sys.stdlib_module_names, "sepc_zoo", "triton"}  # torch brings Triton for GPUs
    needed = {names.get(root, root) for root in roots} - given
    assert {name for name in needed if name.lower() not in listed} == set()
