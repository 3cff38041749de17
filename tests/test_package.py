"""The package as a whole: layers, light imports, documentation, requirements."""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from configparser import ConfigParser
from pathlib import Path

import pytest
from new_process import run_python

import sepc_zoo
from sepc_zoo.config import METHOD_TYPES, NECK_TYPES, resolve

PACKAGE = Path(sepc_zoo.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Imports run downwards only: a module imports from its own layer and from those below it.
LAYERS = [
    {"cli", "__main__"},
    {"api"},
    {"training"},
    {"evaluation", "demo"},
    {"export"},
    {"factory", "torch_hub"},
    {"checkpoints"},
    {"models"},
    {"inference", "methods"},
    {"data", "ops"},
    {"registry", "published", "catalog"},
    {"config", "outputs"},
    {"errors", "files", "options", "lazy", "metric_names", "terminal"},
]
# Imports upwards that are meant, with the reason.
ALLOWED: dict[tuple[str, str], str] = {}

# Libraries that a model does not need.
HEAVY = {
    *("accelerate", "av", "datasets", "faster_coco_eval", "gradio", "matplotlib", "onnx"),
    *("pycocotools", "rich", "supervision", "tensorboard", "torchmetrics", "trackers"),
}
# Modules of options and errors, which the command line loads to print a help.
LIGHT = (
    *("errors", "files", "config", "options", "registry", "catalog", "training.options"),
    *("cli", "cli.train"),
)


def loaded_by(code):
    """Names of the modules that are loaded after some code in a new process."""
    return {*run_python("-c", f"{code}; import sys; print(*sys.modules)").stdout.split()}


def module_name(path):
    """``data.formats.coco``; a package is called as its folder, the root has an empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Names of the modules that a file imports, also in functions and for type checkers only."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_of(name):
    """The layers that claim a module of the package."""
    return [i for i, layer in enumerate(LAYERS) if name.split(".")[0] in layer]


def own_imports(path):
    """What a module imports from the package, but for its version."""
    names = {name.removeprefix("sepc_zoo.") for name in imported(path) if "sepc_zoo." in name}
    return names - {"__version__"}


# Layers


def test_every_module_is_in_exactly_one_layer():
    names = {module_name(path) for path in SOURCES} - {""}  # the root offers names of all layers
    assert {name: layers_of(name) for name in names if len(layers_of(name)) != 1} == {}


def test_imports_run_downwards():
    upwards = {
        (name, other)
        for path in SOURCES
        if (name := module_name(path))
        for other in own_imports(path)
        if not layers_of(other) or layers_of(other) < layers_of(name)
    }
    assert upwards - {*ALLOWED} == set()


# Imports


def test_importing_the_package_loads_nothing_and_its_names_no_heavy_library():
    assert (HEAVY | {"torch", "timm", "numpy"}) & loaded_by("import sepc_zoo") == set()
    code = "import sepc_zoo; [getattr(sepc_zoo, name) for name in sepc_zoo.__all__]"
    assert HEAVY & loaded_by(code) == set()


def test_options_and_errors_load_neither_torch_nor_timm():
    code = f"import {', '.join(f'sepc_zoo.{name}' for name in LIGHT)}"
    assert {"torch", "torchvision", "timm", "numpy"} & loaded_by(code) == set()


@pytest.mark.parametrize("package", ["__init__.py", "data/__init__.py"])
def test_lazy_names_are_those_that_type_checkers_see(package):
    tree = ast.parse((PACKAGE / package).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: node.module for node in checked.body for a in node.names}
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert values["_HOMES"] == seen
    assert {*values["__all__"]} - {"__version__"} == {*seen}


def test_the_package_has_its_public_names_and_no_others():
    surface = {
        *("create_model", "load_model", "save_model", "list_models", "list_backbones", "is_model"),
        *(
            "model_info",
            "register_model",
            "register_method",
            "register_neck",
            "convert",
            "push_to_hub",
            "Detections",
            "Predictions",
        ),
    }
    assert surface <= {*sepc_zoo.__all__} <= {*dir(sepc_zoo)}
    assert sorted(sepc_zoo.__all__) == sepc_zoo.__all__
    assert inspect.isfunction(sepc_zoo.convert.from_authors)
    with pytest.raises(AttributeError, match="module 'sepc_zoo' has no attribute 'bogus'"):
        _ = sepc_zoo.bogus


# Documentation


def test_every_module_is_documented():
    sources = {path: path.read_text(encoding="utf-8") for path in SOURCES}
    undocumented = [
        module_name(path)
        for path, text in sources.items()
        if text and not ast.get_docstring(ast.parse(text))
    ]
    assert undocumented == []


def public_functions():
    """Public functions, and those of public classes and modules, by name."""
    for name in sorted({*sepc_zoo.__all__} - {"__version__"}):
        value = getattr(sepc_zoo, name)
        if inspect.isfunction(value):
            yield name, value
            continue
        for member in vars(value) if inspect.isclass(value) else value.__all__:
            getattr(value, member)  # imports a lazy name
            function = inspect.getattr_static(value, member)
            function = getattr(function, "fget", getattr(function, "__func__", function))
            if not member.startswith("_") and inspect.isfunction(function):
                yield f"{name}.{member}", function


@pytest.mark.parametrize("name", sorted({*sepc_zoo.__all__} - {"__version__"}))
def test_every_public_name_is_documented(name):
    value = getattr(sepc_zoo, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value):
        assert value.__doc__
        assert not value.__doc__.startswith(f"{name}(")  # a dataclass' or a NamedTuple's own


def called_functions(function):
    """Functions and classes of the package that a function calls, but for those inside of a try."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
    known = dict(function.__globals__)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= vars(importlib.import_module(node.module))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and id(node) not in guarded
        ):
            value = known.get(node.func.id)
            if (getattr(value, "__module__", None) or "").startswith("sepc_zoo"):
                yield value


def test_public_functions_document_parameters_shapes_units_and_errors():
    undocumented = set()
    for name, function in public_functions():
        text, source = inspect.getdoc(function) or "", inspect.getsource(function)
        hints = str(inspect.get_annotations(function)).replace("Mapping[str, torch.Tensor]", "")
        has_tensors = "Tensor" in hints  # a state dict has tensors of any shape
        if has_tensors and not re.search(r"\([A-Z0-9]\w*,[^)]*\)|``\(\)``", text):
            undocumented.add(f"{name}: shapes")
        has_lengths = re.search(r"\w, 4\)", text) or "size" in str(inspect.signature(function))
        if has_lengths and not re.search("pixel|batch_size", text):
            undocumented.add(f"{name}: units")
        called = (inspect.getdoc(value) or "" for value in called_functions(function))
        raises = re.search(r"raise (?!NotImplemented)", source) or any(
            "Raises:" in d for d in called
        )
        if raises and "Raises:" not in text:
            undocumented.add(f"{name}: errors")
        if not text:
            undocumented.add(f"{name}: everything")
        named = text.partition("Args:")[2]
        parameters = {*inspect.signature(function).parameters} - {"self", "cls"}
        if function in (sepc_zoo.Detector.predict, sepc_zoo.Detector.stream):
            parameters -= {"model"}
        undocumented |= {f"{name}: {p}" for p in parameters if f"    {p}: " not in named}
    assert undocumented == set()


@pytest.mark.parametrize("kind", [*METHOD_TYPES.values(), *NECK_TYPES.values()])
def test_every_method_and_neck_names_the_paper_it_is_from(kind):
    kind = resolve(kind)
    text = f"{inspect.getmodule(kind).__doc__} {kind.__doc__}"
    assert re.search(r"et al\. (19|20)\d\d|\(SEPC, section \d\)", text)


# Requirements


def test_what_the_package_imports_is_among_its_requirements():
    names = {"PIL": "pillow", "yaml": "pyyaml", "faster_coco_eval": "faster-coco-eval"}
    config = ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg")
    extras = "".join(config["options.extras_require"].values())
    listed = (config["options"]["install_requires"] + extras).lower()
    roots = {name.split(".")[0] for path in SOURCES for name in imported(path)}
    given = {*sys.stdlib_module_names, "sepc_zoo", "triton"}  # torch brings Triton for GPUs
    needed = {names.get(root, root) for root in roots} - given
    assert {name for name in needed if name.lower() not in listed} == set()
