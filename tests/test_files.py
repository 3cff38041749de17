import csv
import json
import os

import pytest

from sepc_zoo.files import write_atomically, write_csv, write_json


def test_missing_folders_are_created(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"AP": 0.5})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"AP": 0.5}


def test_temporary_file_lies_beside_and_ends_like_the_final_one(tmp_path):
    seen = []
    write_atomically(tmp_path / "x.tar.gz", lambda file: (seen.append(file), file.touch()))
    assert seen[0].parent == tmp_path
    assert seen[0].name.endswith(".tar.gz")
    assert seen[0].name != "x.tar.gz"


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def write_half(file):
        file.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write_half)
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "old"


def test_the_file_is_synced_before_its_rename_and_the_folder_after(tmp_path, monkeypatch):
    path, events = tmp_path / "x.txt", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(path.exists()), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("rename"), replace(*names)))
    write_atomically(path, lambda file: file.write_text("new"))
    assert events == [False, "rename", True]


def test_text_that_utf8_cannot_encode_survives_json(tmp_path):
    names = ["caf\udce9.jpg", "\ud83d", "é"]
    write_json(tmp_path / "x.json", names)
    assert json.loads((tmp_path / "x.json").read_bytes().decode()) == names


def test_names_stay_readable_in_json(tmp_path):
    write_json(tmp_path / "x.json", ["Straßenbahn"])
    assert "Straßenbahn" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_nan_is_refused_since_json_has_none(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_rows_are_read_back_whatever_is_in_them(tmp_path):
    rows = [["a,b", 'say "x"'], ["two\nlines", "Ärger"], ["caf\udce9", "1"]]
    write_csv(tmp_path / "rows.csv", ["left", "right"], rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file))
    assert found == [["left", "right"], *rows[:2], [r"caf\udce9", "1"]]
