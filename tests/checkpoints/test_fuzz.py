"""Model folders from strangers: whatever their bytes are, a model comes of them or a clear error.

A few hundred cases, always the same ones; SEPC_ZOO_FUZZ_CASES=2000 makes more.
"""

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from contextlib import contextmanager

import pytest
from attacks import Call
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from sepc_zoo import create_model, load_model
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.errors import UserError
from sepc_zoo.models.detector import Detector

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CASES = int(os.environ.get("SEPC_ZOO_FUZZ_CASES", "240"))
SECONDS = 10  # that a case may take on a busy machine
MAX_MEMORY = 2 * 1024**3  # bytes
MAX_TEXT = 8000  # characters of an error
# What nobody does who only reads two files; names of CPython's audit events.
FORBIDDEN = (
    *("socket.", "subprocess.", "urllib.", "http.", "ftplib.", "os.system", "os.exec", "os.fork"),
    *("os.spawn", "os.posix_spawn", "os.remove", "os.rename", "os.mkdir", "shutil."),
    *("pickle.find_class", "marshal.loads", "builtins.input"),
)


def cases(share):
    """Settings of a property that gets a share of the cases."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        deadline=None,  # ours interrupts a case that hangs
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain},  # which traces, and is ten times slower
    )


class Files(dict):
    def __repr__(self):  # of a case that failed
        return "good"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The two files of a model, as bytes."""
    small = {"channels": 8, "num_classes": 3, "neck": {"blocks": 1}}
    model = create_model("fsaf_test_efficientnet_pconv", **small)
    folder = save_model(model, tmp_path_factory.mktemp("good"))
    return Files((name, (folder / name).read_bytes()) for name in (CONFIG, WEIGHTS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("strange")


watched = None  # forbidden events, while somebody watches


def remember(event, args):
    if watched is not None and event.startswith(FORBIDDEN):
        watched.append((event, args))


@pytest.fixture(scope="module", autouse=True)
def audit():
    sys.addaudithook(remember)  # cannot be taken away again


@contextmanager
def nothing_but_reading():
    global watched
    watched = events = []
    try:
        yield
    finally:
        watched = None
    assert not events


class Hangs(BaseException):
    """Not caught by any ``except Exception``."""


@contextmanager
def interrupted_after(seconds):
    def interrupt(*_):
        raise Hangs(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def built_or_refused(folder, files):
    """Load a folder of these files; the text of the refusal, None where a model was built."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with nothing_but_reading(), interrupted_after(SECONDS):
        try:
            model = load_model(folder)
        except UserError as error:
            text = str(error)
            assert str(folder) in text
            assert CONFIG in text or WEIGHTS in text
            assert len(text) < MAX_TEXT
            return text
    assert isinstance(model, Detector)
    return None


# Values of JSON

TRICKS = [
    *("", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "~/x", "a/b", "a\0b"),
    *("x" * 100_000,),
    *("hf-hub:zoo/model", "hf_hub:zoo/model", "local-dir:/tmp", "timm/resnet18.tv_in1k"),
    *("https://example.com/x", "file:///etc/passwd", "\ud800", "\u202e", "\x1b[2J", "%n%s", "{0}"),
    *("__import__('os').system('true')", "torch.nn.Identity", "resnet18.nope", "resnet18"),
    *("retinanet", "freeanchor", "resnet50", "vit_tiny_patch16_224"),
    *("swin_tiny_patch4_window7_224",),
]
NUMBERS = [
    *(-1, 0, 1, 2, 3, 7, 8, 64, 255, 4096, 16384, 10**5, 10**6, 10**9, 2**31, 2**63, 2**64),
    *(10**400,),
    *(-(2**63), 0.0, -0.0, 0.5, 1e-320, 1e300, float("nan"), float("inf"), float("-inf"), 10**4000),
]
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
words = st.sampled_from(TRICKS) | st.text(max_size=20)
leaves = st.none() | st.booleans() | numbers | words
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
KWARGS = [
    *("layers", "depths", "depth_multiplier", "channel_multiplier", "img_size", "in_chans", "dims"),
    *("out_indices", "output_stride", "act_layer", "norm_layer", "norm_eps", "drop_path_rate"),
    *("feature_cls", "feature_cfg", "features_only", "pretrained", "checkpoint_path", "cache_dir"),
    *("pretrained_cfg", "num_classes", "global_pool", "block", "block_args", "bn_eps", "pad_type"),
    *("model_name", "self", "variant", "scriptable", "no_jit", "stem_size", "round_chs_fn"),
    *("kwargs",),
]
BACKBONES = [
    "resnet18",
    "mobilenetv2_100",
    "convnext_atto",
    "test_efficientnet",
    "test_vit",
    "lcnet_035",
]


def paths(content, here=()):
    """The places of nested plain data."""
    yield here
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from paths(value, (*here, key))
        else:
            yield (*here, key)


@st.composite
def changed(draw, content):
    """Nested plain data with something else in one to three places of it."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        places = list(paths(content))[1:]
        assume(places)
        *path, key = draw(st.sampled_from(places))
        inside = content
        for step in path:
            inside = inside[step]
        action = draw(st.sampled_from(["set", "set", "set", "delete", "add", "rename"]))
        if action == "set":
            inside[key] = draw(values)
        elif action == "delete":
            del inside[key]
        elif isinstance(inside, list):
            inside.append(draw(values))
        elif action == "add":
            inside[draw(words)] = draw(values)
        else:
            inside[draw(words)] = inside.pop(key)
    return content


@st.composite
def changed_bytes(draw, data, inserted):
    """Bytes with one to four changes somewhere."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.sampled_from([0, 1, 1, 8, 100, len(data)])))
        data = data[:start] + draw(inserted) + data[stop:]
    return data


@given(st.data())
@cases(0.3)
def test_any_values_in_a_config(good, folder, data):
    content = data.draw(changed(json.loads(good[CONFIG])))
    built_or_refused(folder, good | {CONFIG: json.dumps(content).encode()})


@given(
    backbone=st.sampled_from(BACKBONES),
    kwargs=st.dictionaries(st.sampled_from(KWARGS), values, max_size=3),
)
@cases(0.15)
def test_any_arguments_of_a_backbone(good, folder, backbone, kwargs):
    content = json.loads(good[CONFIG])
    content["model_args"] |= {"backbone": {"name": backbone, "kwargs": kwargs}}
    built_or_refused(folder, good | {CONFIG: json.dumps(content).encode()})


PIECES_OF_JSON = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\0", b"\xff", b"\xc0\x80"),
    *(b"\xed",),
    *(b"NaN", b"-Infinity", b"1e999", b"-", b"9" * 5000, b"9" * 4000, b"null", b"true", b"{}"),
    *(b"//",),
    *(b"\xef\xbb\xbf", b"[" * 900, b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900),
    *(b'"num_classes": 9,', b'"backbone": "../x",', b'"x": 1,', b'"\\ud800": 1,', b"x" * 10**6),
]


@given(st.data())
@cases(0.15)
def test_any_text_of_a_config(good, folder, data):
    pieces = st.sampled_from(PIECES_OF_JSON) | st.binary(max_size=8)
    text = data.draw(changed_bytes(good[CONFIG], pieces))
    built_or_refused(folder, good | {CONFIG: text})


# Weights

DTYPES = [
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "C64", "I64"),
    *("I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "float32", "O", ""),
]
sizes = st.sampled_from([n for n in NUMBERS if isinstance(n, int)]) | st.integers(0, 100)
DAMAGED_HEADERS = [
    "replace an entry",
    "rename",
    "another shape",
    "another type",
    "other offsets",
    "overlap",
    "empty and huge",
    "another tensor",
    "metadata",
]


def split_weights(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_weights(header, body, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@st.composite
def changed_header(draw, header):
    header = json.loads(json.dumps(header))
    for _ in range(draw(st.integers(1, 2))):
        name, other = draw(st.tuples(*[st.sampled_from(sorted(header))] * 2))
        entry = header[name] if isinstance(header[name], dict) else {}
        damage = draw(st.sampled_from(DAMAGED_HEADERS))
        if damage == "replace an entry":
            header[name] = draw(values)
        elif damage == "rename":
            header[draw(words)] = header.pop(name)
        elif damage == "another shape":
            entry["shape"] = draw(st.lists(sizes, max_size=5) | values)
        elif damage == "another type":
            entry["dtype"] = draw(st.sampled_from(DTYPES) | values)
        elif damage == "other offsets":
            entry["data_offsets"] = draw(st.lists(sizes, min_size=2, max_size=2) | values)
        elif damage == "overlap":
            header[name] = header[other]
        elif damage == "empty and huge":
            entry |= {"shape": [0, draw(sizes), draw(sizes)], "data_offsets": [0, 0]}
        elif damage == "another tensor":
            start = draw(sizes)
            empty = {"dtype": "F32", "shape": draw(st.lists(sizes, max_size=3))}
            header[draw(words)] = empty | {"data_offsets": [start, start]}
        else:
            header["__metadata__"] = draw(values)
    return header


@given(st.data())
@cases(0.25)
def test_any_header_of_the_weights(good, folder, data):
    header, body = split_weights(good[WEIGHTS])
    weights = join_weights(data.draw(changed_header(header)), body)
    built_or_refused(folder, good | {WEIGHTS: weights})


LENGTHS = [0, 1, 7, 2**20, 10**8, 10**8 + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@given(
    length=st.sampled_from(LENGTHS) | st.integers(0, 2**64 - 1),
    keep=st.none() | st.integers(0, 20_000),
)
@cases(0.05)
def test_any_length_of_the_header(good, folder, length, keep):
    header, body = split_weights(good[WEIGHTS])
    built_or_refused(folder, good | {WEIGHTS: join_weights(header, body, length)[:keep]})


CODE = Call(os.system, "true")
STRANGE_FILES = [pickle.dumps(CODE), pickle.dumps(CODE, 0), b"PK\3\4", b"\x89HDF\r\n\x1a\n"]


@given(st.data())
@cases(0.1)
def test_any_bytes_of_the_weights(good, folder, data):
    pieces = st.binary(max_size=16) | st.sampled_from(STRANGE_FILES)
    start = good[WEIGHTS][:12_000]  # all of the header and a little more
    some = changed_bytes(start, pieces).map(lambda changed: changed + good[WEIGHTS][12_000:])
    weights = data.draw(some | pieces | pieces.map(lambda piece: piece + good[WEIGHTS]))
    built_or_refused(folder, good | {WEIGHTS: weights})


PEAK_OF_TESTS = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-k", "any", sys.argv[1]])
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="memory of a process is not told here")
def test_memory_stays_small():
    """In a process of its own, started by a small one: it inherits the peak of who starts it."""
    command = [sys.executable, "-c", PEAK_OF_TESTS, __file__]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    peak = int(done.stdout.split()[-1])
    assert peak * (1 if sys.platform == "darwin" else 1024) < MAX_MEMORY
