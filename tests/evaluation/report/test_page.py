"""The report, parsed as HTML."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from difficulties import make_results as make_difficult_results
from made_up_splits import make_annotations, result
from PIL import Image

from sepc_zoo.data import read_data
from sepc_zoo.evaluation.diagnosis import diagnose_split
from sepc_zoo.evaluation.errors import ERROR_KINDS, ErrorCosts
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.report import sections
from sepc_zoo.evaluation.report.charts import ap_by_iou, style
from sepc_zoo.evaluation.report.context import ReportContext
from sepc_zoo.evaluation.report.page import write_report
from sepc_zoo.evaluation.results import collect_detections

FACTS = {"model": "a model", "data": "some data"}
VOID = {"meta", "img", "br", "path", "use", "rect"}
NASTY = '<script>alert("&")</script>'


class Reader(HTMLParser):
    """Collects the texts and tags of a page; every tag must be closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def make_split(folder, images=3, classes=3, used=3, names=None):
    """Images with three objects and a crowd each, of the first ``used`` classes."""
    folder.mkdir(parents=True, exist_ok=True)
    boxes = [(x, 10.0, 20.0, 30.0) for x in (0.0, 30.0, 60.0, 90.0)]
    labels = np.arange(4 * images).reshape(images, 4) % min(used, classes)
    crowds = False, False, False, True
    truth = [list(zip(own, boxes, crowds, strict=True)) for own in labels.tolist()]
    split, rng, records = make_annotations(truth, classes), np.random.default_rng(0), []
    for i, record in enumerate(split.records):
        path = folder / f"{i}.jpg"
        Image.fromarray(rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(path)
        records.append(replace(record, path=path, size=(90, 120)))
    return replace(split, records=tuple(records), label_names=tuple(names or split.label_names))


def make_results(annotations):
    """Correct, moved and wrong boxes with random scores."""
    rng, classes, rows = np.random.default_rng(0), len(annotations.label_names), []
    for record in annotations.records:
        for (x, *more), label in zip(record.bbox.tolist(), record.labels.tolist(), strict=True):
            for shift in (0, 4, 12):
                found = label if rng.random() < 0.7 else int(rng.integers(classes))
                rows.append(result(record.image_id, found, (x + shift, *more), rng.random()))
    return rows


def page_of(annotations, rows, folder, facts=FACTS):
    found = collect_detections(rows, annotations)
    path = folder / "report.html"
    evaluation, diagnosis = evaluate(found, annotations), diagnose_split(found, annotations)
    errors = ErrorCosts(diagnosis, len(annotations.label_names)).costs()
    evaluation.metrics["errors"] = errors
    write_report(path, annotations, evaluation, diagnosis, facts)
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def page(split, tmp_path_factory):
    return page_of(split, make_results(split), tmp_path_factory.mktemp("page"))


def test_the_page_has_all_sections_and_links_to_each(page):
    titles = [attrs["id"] for attrs in page.all("section")]
    assert len(titles) == 8
    assert [attrs["href"] for attrs in page.all("a")] == [f"#{title}" for title in titles]


def test_the_page_loads_nothing_else(page):
    for tag, attrs in page.tags:
        assert not attrs.get("src", "data:").startswith(("http", "/", "file"))
        assert attrs.get("href", "#").startswith("#")
        assert tag != "link"
        assert "url(" not in attrs.get("style", "")
    assert "@import" not in page.text


def test_the_head_names_what_was_evaluated(page):
    for text in ("a model", "some data", "9 and 3 crowds", "36", "images 3"):
        assert text in page.text


def test_the_figures_are_the_evaluations(split, page):
    rows = make_results(split)
    metrics = evaluate(collect_detections(rows, split), split).metrics
    figures = [metrics[key] for key in ("AP", "AP50", "AR100")]
    figures += [metrics["per_class"][name]["AP75"] for name in split.label_names]
    assert all(f"{value:.3f}" in page.text for value in figures)


def test_there_is_a_curve_for_each_class_with_objects(page):
    labels = [attrs["aria-label"] for attrs in page.all("svg")]
    assert sum(label.startswith("precision and recall: class") for label in labels) == 3


def test_each_kind_of_error_has_its_cost_and_an_advice(page):
    assert "AP50 that each kind of error costs" in [a.get("aria-label") for a in page.all("svg")]
    for kind in ERROR_KINDS.values():
        assert f"{kind.meaning} {kind.advice}" in page.text


def test_each_count_of_lost_objects_has_a_name_of_its_own(split, page):
    found = collect_detections(make_results(split), split)
    context = ReportContext(split, evaluate(found, split), diagnose_split(found, split))
    count = sections.outcomes(context)["not_found"]
    assert f"Of 9 objects {count} are not found" in page.text
    assert "detections have a score of" in page.text
    for name in ("Miss", "no detection", "Objects not found"):
        assert name in page.texts
    assert "missed" not in page.text


def test_charts_use_the_colors_of_the_page(page):
    styles = [attrs["style"] for tag, attrs in page.tags if tag in ("path", "text")]
    assert any("var(--first)" in style for style in styles)
    assert not [style for style in styles if re.search(r"(fill|stroke): #", style)]


def test_ids_are_unique_in_the_page(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 100


def test_mistakes_are_shown_as_pictures(page):
    pictures = [attrs["src"] for attrs in page.all("img")]
    assert len(pictures) >= 6
    assert all(picture.startswith("data:image/jpeg;base64,/9j/") for picture in pictures)


def test_names_from_outside_are_escaped(tmp_path):
    split = make_split(tmp_path / NASTY.replace("/", ""), names=[NASTY, '" onclick="x', "a<b&c"])
    page = page_of(split, make_results(split), tmp_path, {"model": NASTY, NASTY: NASTY})
    assert len(page.all("script")) == 1
    assert not [attrs for _, attrs in page.tags if "onclick" in attrs]
    for name in (NASTY, '" onclick="x', "a<b&c"):
        assert name in page.text


def test_unreadable_images_do_not_stop_the_page(tmp_path):
    split = make_split(tmp_path / "images")
    split.records[0].path.write_bytes(b"no image")
    split.records[1].path.unlink()
    page = page_of(split, make_results(split), tmp_path)
    assert "the image cannot be read" in page.text
    assert page.all("img")


def wrong_boxes(shift):
    return [result(i, 0, (shift, 10, 20, 30), 0.5) for i in (1, 2, 3)]


@pytest.mark.parametrize("rows", [[], wrong_boxes(500)])
def test_a_page_without_a_correct_detection_says_so(rows, split, tmp_path):
    page = page_of(split, rows, tmp_path)
    assert f"There are {len(rows)} detections. Of 9 objects 9 are not found" in page.text
    assert "no score threshold is better than another" in page.text
    assert "mending errors of one kind gains nothing" in page.text
    assert "Lower the IoU threshold" not in page.text  # the table of kinds
    assert len(page.all("img")) >= 6  # pictures of objects not found


def test_costs_are_shown_where_mending_alone_makes_a_detection_correct(split, tmp_path):
    text = page_of(split, wrong_boxes(10), tmp_path).text
    assert "gains nothing" not in text
    assert ERROR_KINDS["localisation"].advice in text


def test_a_page_without_objects_says_so(split, tmp_path):
    none = {name: torch.empty(0) for name in ("labels", "iscrowd", "area")}
    none |= {"boxes": torch.empty(0, 4), "bbox": torch.empty(0, 4)}
    records = tuple(replace(record, **none) for record in split.records)
    page = page_of(replace(split, records=records), make_results(split), tmp_path)
    assert "no objects to find" in page.text
    assert page.all("img")


def test_an_empty_split_has_a_page(split, tmp_path):
    page = page_of(replace(split, records=()), [], tmp_path)
    assert "images 0" in page.text


def test_scores_outside_0_to_1_have_a_page(split, tmp_path):
    rows = [row | {"score": 10 * row["score"] - 5} for row in make_results(split)]
    assert "cannot be probabilities" in page_of(split, rows, tmp_path).text


def test_a_single_class_has_a_page(tmp_path):
    split = make_split(tmp_path / "images", classes=1)
    page = page_of(split, make_results(split), tmp_path)
    assert "No class is confused with another" in page.text


def test_the_curves_of_many_classes_are_in_groups(tmp_path):
    split = make_split(tmp_path / "images", images=14, classes=30, used=26)
    page = page_of(split, make_results(split), tmp_path)
    groups = page.all("details")
    assert len(groups) == 3  # 26 classes with objects, 12 per group
    assert [attrs for attrs in groups if "open" in attrs] == groups[:1]
    assert "other classes" in page.text


@pytest.mark.slow
def test_a_page_of_coco_is_small(shared_data, tmp_path):
    split = read_data(shared_data / "coco_by_sa", "val")
    truth = shared_data / "coco_by_sa/annotations/instances_val2017.json"
    names = ["a_little_off", "wrong_class", "duplicates_with_higher_scores", "crowd_hit_many_times"]
    page = page_of(split, make_difficult_results(names, json.loads(truth.read_text())), tmp_path)
    assert len(page.all("details")) == 6  # 69 classes with objects
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_a_page_that_fails_leaves_the_old_one(split, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr("sepc_zoo.evaluation.report.gallery.close_up", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        page_of(split, make_results(split), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_matplotlibs_settings_stay_as_they_are():
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    with style():
        assert "<svg" in ap_by_iou([0.5] * 10)
    assert dict(matplotlib.rcParams) == before
