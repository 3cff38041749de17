import mmap
import pickle
import tempfile
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from process_pair import ProcessPair

from sepc_zoo.data.annotations import Annotations
from sepc_zoo.data.problems import DataError, Problem
from sepc_zoo.data.records import Record, Records, map_records
from sepc_zoo.data.sharing import read_once
from sepc_zoo.errors import UserError
from sepc_zoo.training.accelerator import start_processes

PATHS = "a/1.jpg", "a/b c.png", "bytes \udcff and \ud800.jpg"


def make_record(i):
    bbox = torch.arange(4.0 * i, dtype=torch.float64).reshape(i, 4)
    whole = torch.arange(i)
    return Record(
        7 + i, Path(PATHS[i]), (10 + i, 20), bbox.float(), whole, whole % 2, bbox[:, 2] / 3, bbox
    )


RECORDS = [make_record(i) for i in (2, 0, 1)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a.image_id, a.path, a.size) == (b.image_id, b.path, b.size)
        for name in ("boxes", "labels", "iscrowd", "area", "bbox"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert torch.equal(x, y)


def test_records_are_a_sequence_of_what_they_were_made_of():
    records = Records.of(RECORDS)
    assert_same(records, RECORDS)
    assert_same([records[-1], *records[:2]], [RECORDS[-1], *RECORDS[:2]])
    assert Records.of(records) is records
    with pytest.raises(IndexError):
        records[3]


@pytest.mark.parametrize("indices", [[], [1], [2, 0, 2]])
def test_chosen_images_keep_their_boxes(indices):
    assert_same(Records.of(RECORDS).take(indices), [RECORDS[i] for i in indices])


@pytest.mark.parametrize("chosen", [RECORDS, RECORDS[1:2], []])
def test_written_records_are_mapped_as_they_were(chosen, tmp_path):
    with open(tmp_path / "records", "w+b") as file:
        places = Records.of(chosen).write(file)
        mapped, other = (map_records(file, places) for _ in range(2))
    assert_same(mapped, chosen)
    mapped.area[:] = -1  # stays in its process
    assert_same(other, chosen)
    assert_same(pickle.loads(pickle.dumps(other)), chosen)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_an_error_that_names_the_way_out():
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(UserError, match="TMPDIR"):
        Records.of(RECORDS).write(full)


def left_in(folder):
    return [path for path in folder.iterdir() if not path.name.startswith("pymp")]  # Python's own


def describe(records, pipe):
    pipe.send((type(records.area.base), records.area.sum(), [*records][1].path))


def test_a_started_process_maps_records_from_a_file_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    records, context = Records.of(RECORDS), get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=describe, args=(records, theirs))
    process.start()
    assert ours.recv() == (mmap.mmap, records.area.sum(), RECORDS[1].path)
    assert left_in(tmp_path) == []
    process.join()


@pytest.fixture(scope="module")
def pair():
    processes = ProcessPair()
    yield processes
    processes.close()


def read_and_describe(folder, outcome):
    """Read in a process of a pair; return who read, and what came of it."""
    tempfile.tempdir = str(folder)
    readers = []
    start_processes(device="cpu")

    def read():
        readers.append(start_processes(device="cpu").process_index)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        data = read_once(read)
    except DataError as error:
        return readers, str(error)
    return readers, data


def test_one_process_of_a_machine_reads_and_the_others_map_what_it_read(pair, tmp_path):
    box = Problem("box without area", "a.json: annotations[3]", "no area")
    data = Annotations(Records.of(RECORDS), ("cat", "dog"), (3, None), (box,))
    (first, one), (second, other) = pair(read_and_describe, tmp_path, data)
    assert (first, second) == ([0], [])
    for found in (one, other):
        assert_same(found.records, RECORDS)
        assert (found.label_names, found.category_ids) == (data.label_names, data.category_ids)
        assert found.dropped == data.dropped
    assert left_in(tmp_path) == []


def test_all_processes_raise_what_kept_one_from_reading(pair, tmp_path):
    error = DataError([Problem("broken entry", "a.json", "is odd")])
    results = pair(read_and_describe, tmp_path, error)
    assert results == [([0], "a.json: is odd"), ([], "a.json: is odd")]
    assert left_in(tmp_path) == []
