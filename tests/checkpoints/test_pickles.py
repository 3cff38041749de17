"""Checkpoints whose pickles hold more than tensors: read without what they name, or refused."""

import pickle
import re
import sys
from collections import OrderedDict, defaultdict
from types import ModuleType

import numpy
import pytest
import torch
from attacks import Call
from authors_checkpoints import META

from sepc_zoo.checkpoints.convert.pickles import CheckpointError, read_checkpoint, read_state_dict

TENSORS = {"backbone.conv1.weight": torch.arange(6.0).view(2, 3), "scale": torch.tensor(2.0)}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])


@pytest.fixture
def foreign(monkeypatch):
    """Makes a class of a module that exists only while a file is written."""

    def make(path, base=object, **members):
        module, _, name = path.rpartition(".")
        for end in [i for i, letter in enumerate(module) if letter == "."] + [len(module)]:
            if module[:end] not in sys.modules:
                monkeypatch.setitem(sys.modules, module[:end], ModuleType(module[:end]))
        made = type(name, (base,), {"__module__": module, **members})
        setattr(sys.modules[module], name, made)
        return made

    return make


def write(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_read(path):
    state = read_state_dict(path)
    assert list(state) == list(TENSORS)
    assert all(torch.equal(state[name], TENSORS[name]) for name in TENSORS)


def mmengine_content(foreign):
    def mean(self):
        raise AssertionError(f"{self}: this is never called")

    buffer = foreign("mmengine.logging.history_buffer.HistoryBuffer", mean=mean)
    mean.__qualname__, mean.__module__ = "HistoryBuffer.mean", buffer.__module__
    history = buffer()
    history._log_history = numpy.arange(3.0)
    history._statistics_methods = OrderedDict(mean=buffer.mean)
    config_dict = foreign("mmengine.config.config.ConfigDict", dict)
    config_dict.__reduce_ex__ = lambda self, _: (type(self), (dict(self),), None, None, None)
    config = foreign("mmengine.config.config.Config")
    config.__getstate__ = lambda _: ({"model": 1}, "file.py", "text", None)
    return {
        "meta": {"cfg": config(), "model": config_dict(a=config_dict(b=[1, 2])), "iter": 3},
        "message_hub": {"log_scalars": {"train/loss": history}},
        "param_schedulers": [{"last": numpy.float64(0.1), "best": numpy.int64(4)}],
        "state_dict": OrderedDict(TENSORS),
    }


def mmcv_content(foreign):
    config_dict = foreign("mmcv.utils.config.ConfigDict", foreign("addict.addict.Dict", dict))
    config_dict.__getstate__ = lambda self: self
    config_dict.__setstate__ = lambda self, state: self.update(state)
    state = OrderedDict(TENSORS)
    state._metadata = OrderedDict(backbone={"version": 1})
    meta = {"CLASSES": ("person",), "cfg": config_dict(a=1), "counts": defaultdict(list, a=[1])}
    return {"meta": meta, "state_dict": state, "optimizer": {"lr": numpy.float32(0.1)}}


@FORMATS
@pytest.mark.parametrize("make", [mmengine_content, mmcv_content])
def test_tensors_are_read_beside_objects_of_foreign_classes(make, zipped, foreign, tmp_path):
    path = write(tmp_path / "x.pth", make(foreign), zipped)
    for name in list(sys.modules):
        if name.split(".")[0] in ("mmengine", "mmcv", "addict"):
            del sys.modules[name]
    assert_read(path)


def test_stand_ins_are_forgotten_after_a_file(foreign, tmp_path):
    path = write(tmp_path / "x.pth", mmengine_content(foreign))
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def attacks(made):
    """Content that would create the file ``made`` if a name in it were followed."""
    import os
    import runpy
    import subprocess

    code = f"open({str(made)!r}, 'w')"
    inner = pickle.dumps(Call(eval, code))
    scalar = numpy.int64(1).__reduce__()[0]
    reconstruct = numpy.zeros(1).__reduce__()[0]
    return {
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "open": Call(open, str(made), "w"),
        "os.mkdir": Call(os.mkdir, str(made)),
        "subprocess": Call(subprocess.run, ["touch", str(made)]),
        "import": Call(__import__, "antigravity"),
        "runpy": Call(runpy.run_path, str(made)),
        "pickle in a pickle": Call(pickle.loads, inner),
        "torch.load": Call(torch.load, str(made)),
        "numpy scalar of objects": Call(scalar, numpy.dtype("O"), inner),
        "numpy array of objects": Call(reconstruct, numpy.ndarray, (0,), b"O"),
        "a function as an attribute": {"a": Call(getattr, "x", "__class__")},
    }


@FORMATS
@pytest.mark.parametrize("where", ["meta", "state_dict"])
@pytest.mark.parametrize("name", attacks("x"))
def test_no_attack_runs(name, where, zipped, tmp_path):
    made = tmp_path / "made"
    content = {"meta": {}, "state_dict": dict(TENSORS)}
    content[where]["x"] = attacks(made)[name]
    path = write(tmp_path / "x.pth", content, zipped)
    try:
        state = read_state_dict(path)
    except CheckpointError as error:
        assert re.search(r"x\.pth: (not a checkpoint that is safe|has no state_dict)", str(error))  # noqa: PT017
        assert "weights_only" not in str(error)  # noqa: PT017
    else:  # an object that does nothing stood beside the tensors
        assert where == "meta"
        assert list(state) == list(TENSORS)
    assert not made.exists()
    assert "antigravity" not in sys.modules


def test_a_hand_written_pickle_that_looks_up_an_attribute_gets_nothing(tmp_path):
    # getattr(OrderedDict, "fromkeys")("ab"): a method that would run if it were looked up.
    data = b"\x80\x02cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x08\x00\x00\x00fromkeys\x86R"
    path = tmp_path / "x.pth"
    path.write_bytes(data + b"X\x02\x00\x00\x00ab\x85R.")
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_state_dict(path)


def test_a_bare_pickle_with_code_is_refused(tmp_path):
    content = {"meta": attacks(tmp_path / "made")["open"], "state_dict": TENSORS}
    (tmp_path / "x.pth").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        read_state_dict(tmp_path / "x.pth")
    assert not (tmp_path / "made").exists()


@FORMATS
def test_tensors_are_read_beside_meta_or_alone(zipped, tmp_path):
    whole = {"meta": META, "state_dict": TENSORS, "optimizer": {"state": {}, "param_groups": []}}
    for content in (whole, TENSORS):
        assert_read(write(tmp_path / "x.pth", content, zipped))


@pytest.mark.parametrize(
    "content",
    [
        *([], 5, torch.ones(2), {"state_dict": [1]}, {"state_dict": {"a": 1}}, {"a": "b"}),
        *({"state_dict": {"a": numpy.zeros(2)}}, numpy.float64(1)),  # read as stand-ins
    ],
)
def test_a_file_without_tensors_by_name_is_refused(content, tmp_path):
    with pytest.raises(CheckpointError, match=r"x.pth: has no state_dict of tensors"):
        read_state_dict(write(tmp_path / "x.pth", content))


@FORMATS
def test_a_truncated_checkpoint_is_refused(zipped, tmp_path):
    path = write(tmp_path / "x.pth", {"a": torch.ones(1000)}, zipped)
    data = path.read_bytes()
    for keep in [*range(0, 400, 7), len(data) // 2, len(data) - 10]:
        path.write_bytes(data[:keep])
        with pytest.raises(CheckpointError, match=r"x.pth"):
            read_state_dict(path)


def test_noise_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    generator = torch.Generator().manual_seed(0)
    for start in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}", b"\x80\x02ccopy_reg\n"):
        for _ in range(20):
            noise = torch.randint(0, 256, (300,), generator=generator, dtype=torch.uint8)
            path.write_bytes(start + bytes(noise.tolist()))
            with pytest.raises(CheckpointError, match=r"x.pth"):
                read_state_dict(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "nowhere.pth", tmp_path):
        with pytest.raises(CheckpointError, match=path.name):
            read_state_dict(path)
