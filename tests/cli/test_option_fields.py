"""Options stated once: checks, command line, files and tables from one field."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import yaml

from sepc_zoo.cli.arguments import key_value, make_parser, nested, parse
from sepc_zoo.cli.reference import markdown_tables
from sepc_zoo.data.formats.reader import FORMATS
from sepc_zoo.errors import ConfigError
from sepc_zoo.options import (
    OptionError,
    Options,
    as_dict,
    from_dict,
    option,
    option_fields,
    option_groups,
)
from sepc_zoo.training.config_file import read_options, write_options
from sepc_zoo.training.options import TrainError, TrainOptions


@dataclass(frozen=True, kw_only=True)
class Oven(Options):
    """Oven."""

    heat: int = option(help="degrees", ge=0, le=300, metavar="C")
    fan: bool | None = option(None, help="use the fan")


@dataclass(frozen=True, kw_only=True)
class Bread(Oven):
    """Bread and its flour."""

    flours: tuple[str, ...] = option(("rye",), help="flours, 100% or less each")
    shape: Literal["round", "long"] | None = option(None, help="shape of the loaf")
    slices: int | Literal["all"] | None = option(None, help="number of slices", ge=1)
    ratio: tuple[float, float] = option((0.5, 1.0), help="range of water to flour", gt=0)
    extras: dict[str, Any] = option(factory=dict, help="other ingredients")
    seeds: bool = option(False, help="add seeds")


def parsed(*texts):
    return parse(make_parser("bake", "", Bread), Bread, texts)


def test_the_command_line_gives_typed_options():
    flags = ["--heat", "230", "--no-fan", "--flours", "rye", "oat", "--ratio", "1", "2", "--seeds"]
    bread = parsed(
        *flags, "--extras", "salt.sea=2", "note=a b", "--shape", "long", "--slices", "all"
    )
    assert bread == Bread(
        heat=230,
        fan=False,
        flours=("rye", "oat"),
        ratio=(1.0, 2.0),
        seeds=True,
        slices="all",
        extras={"salt": {"sea": 2}, "note": "a b"},
        shape="long",
    )
    assert parsed("--heat", "0", "--slices", "9") == Bread(heat=0, slices=9)


def test_help_has_groups_and_defaults():
    text = make_parser("bake", "", Bread).format_help()
    assert text.startswith("usage: bake --heat C [OPTION ...]")
    assert text.index("Bread and its flour:") < text.index("Oven:")
    for line in ("flours, 100% or less each (default rye)", "to flour (default 0.5 1.0)"):
        assert line in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"heat": -1}, "heat is -1; it must be at least 0, at most 300"),
        ({"heat": "hot"}, "heat is 'hot'; it must be int"),
        ({"heat": True}, "heat is True; it must be int"),
        ({"seeds": 1}, "seeds is 1; it must be true or false"),
        ({"shape": "square"}, "shape is 'square'; it must be round or long"),
        ({"ratio": [0.5]}, r"ratio is \[0.5\]; it must be 2 x float"),
        ({"ratio": (0, 1)}, r"ratio is \(0.0, 1.0\); it must be above 0"),
        ({"ratio": (1, float("nan"))}, r"ratio is \(1.0, nan\); it must be above 0"),
        ({"ratio": (1, float("inf"))}, r"ratio is \(1.0, inf\); it must be"),
        ({"slices": "most"}, "slices is 'most'; it must be int or all"),
        ({"slices": 0}, "slices is 0; it must be at least 1"),
        ({"flours": [1]}, "flours is .*; it must be list of str"),
    ],
)
def test_a_value_that_does_not_fit_is_named(values, text):
    with pytest.raises(OptionError, match=text):
        Bread(**{"heat": 200} | values)


def test_numbers_lists_and_paths_are_taken_as_they_come(tmp_path):
    bread = Bread(heat=1, ratio=[1, 2], flours="oat")
    assert (bread.ratio, bread.flours) == ((1.0, 2.0), ("oat",))
    assert Bread(heat=1, flours=tmp_path).flours == (str(tmp_path),)


def test_a_dict_of_options_reads_back_strictly():
    bread = Bread(heat=200, extras={"salt": (1, 2)})
    content = as_dict(bread)
    assert list(content) == [*(e.name for e in option_fields(Bread))]
    assert from_dict(Bread, yaml.safe_load(yaml.safe_dump(content)), "f") == Bread(
        heat=200, extras={"salt": [1, 2]}
    )
    for wrong, text in (
        (content | {"flour": "oat"}, "f: unknown option 'flour'; did you mean 'flours'?"),
        (content | {"degree": 7}, "f: unknown option 'degree'; did you mean 'heat'?"),
        (content | {7: 1}, "f: unknown option 7"),
        ({"fan": True}, r"f: missing options \['heat'\]"),
        (content | {"heat": "x"}, "f: heat is 'x'; it must be int"),
        ([], "f: expected a mapping"),
    ):
        with pytest.raises(ConfigError, match=text.replace("?", r"\?")):
            from_dict(Bread, wrong, "f")


def test_the_table_of_the_docs_has_a_row_for_each_option():
    tables = dict(markdown_tables(Bread))
    rows = [row for table in tables.values() for row in table.splitlines()]
    assert list(tables) == ["Bread and its flour", "Oven"]
    assert len(rows) == 2 * len(tables) + len(option_fields(Bread))
    assert "| `heat` | int | at least 0, at most 300 | required | degrees |" in rows
    assert "| `flours` | list of str |  | rye | flours, 100% or less each |" in rows


def test_key_and_value_are_read_as_python_where_they_can_be():
    pairs = [key_value(text) for text in ("a.b=(1,2)", "a.c=x", "d=1e-3")]
    assert nested("extras", pairs) == {"a": {"b": (1, 2), "c": "x"}, "d": 1e-3}
    with pytest.raises(OptionError, match=r"extras has a.b=2, but a has a value already"):
        nested("extras", [key_value("a=1"), key_value("a.b=2")])


# The options of a run


def test_every_option_of_a_run_is_in_one_group_with_a_help_of_its_own():
    assert len(option_groups(TrainOptions)) == 7
    helps = [info.help for info in option_fields(TrainOptions)]
    assert len(helps) == len({*helps})
    assert all(text[0].islower() and not text.endswith(".") for text in helps)


def test_the_formats_are_those_that_can_be_read():
    table = dict(markdown_tables(TrainOptions))
    assert f"| `format` | {' or '.join(FORMATS)} |" in table["Data"]


def test_the_file_of_a_run_reads_back_strictly(tmp_path):
    options = TrainOptions(data="d", model="m", output=str(tmp_path), lr=1, mosaic=0.5)
    write_options(options)
    assert read_options(tmp_path) == options
    path = tmp_path / "config.yaml"
    text = path.read_text()
    for wrong, named in (
        (text + "epoch: 3\n", "unknown option 'epoch'; did you mean 'epochs'"),
        (
            text.replace("batch_size: 4", "batch_size: many"),
            "batch_size is 'many'; it must be int or auto",
        ),
        (text.replace("batch_size: 4", "batch_size: 0"), "batch_size is 0"),
        (text.replace("model: m\n", ""), r"missing options \['model'\]"),
        ("- 1", "expected a mapping"),
        ("a: [", "no run folder to resume"),
    ):
        path.write_text(wrong)
        with pytest.raises(TrainError, match=named):
            read_options(tmp_path)


def test_paths_in_the_file_of_a_run_are_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").touch()
    write_options(TrainOptions(data=".", model="m", output="run", split_by="own.csv"))
    content = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert content["output"] == str(tmp_path / "run")
    assert content["split_by"] == str(tmp_path / "own.csv")
    assert content["data"] == [str(tmp_path)]


def test_a_run_refuses_values_that_exclude_each_other():
    with pytest.raises(OptionError, match=r"scale is \(2.0, 1.0\); it must be 0 < low <= high"):
        TrainOptions(data="d", model="m", output="o", scale=(2, 1))
    with pytest.raises(OptionError, match=r"image_size is \(96, 64\); the short side comes first"):
        TrainOptions(data="d", model="m", output="o", image_size=(96, 64))


@pytest.mark.parametrize(
    ("frozen", "start", "way"),
    [
        (
            {"freeze_stages": 1},
            {},
            "--finetune MODEL, --pretrained-backbone or --backbone-checkpoint FILE",
        ),
        ({"freeze": "neck"}, {}, "--finetune MODEL"),
        ({"freeze": "neck"}, {"pretrained_backbone": True}, "--finetune MODEL"),
        ({"freeze_stages": 0}, {}, None),
        ({"freeze_stages": 1}, {"backbone_checkpoint": "f"}, None),
        ({"freeze_stages": 1, "freeze": "neck"}, {"pretrained": True}, None),
        ({"freeze_stages": 1, "freeze": "neck"}, {"model": "local-dir:m"}, None),
    ],
)
def test_random_weights_cannot_be_frozen(frozen, start, way):
    given = {"data": "d", "model": "m", "output": "o"} | frozen | start
    if way is None:
        TrainOptions(**given)
        return
    name = next(iter(frozen))
    with pytest.raises(OptionError, match=f"^{name} would freeze random weights; give {way}$"):
        TrainOptions(**given)


@pytest.mark.parametrize("name", ["chanels", "label_names", "weights", "pretrained", "name"])
def test_entries_that_model_kwargs_may_not_change_are_refused(name):
    with pytest.raises(OptionError, match=rf"model_kwargs has {name}; it may have anchors, "):
        TrainOptions(data="d", model="m", output="o", model_kwargs={name: 1})
