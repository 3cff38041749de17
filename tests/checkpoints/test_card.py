import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from msgspec.structs import replace

from sepc_zoo.checkpoints.card import model_card
from sepc_zoo.registry import authors_config, model_config, with_classes

METRICS = {"AP": 0.31234, "AP50": 0.5, "APs": -1.0, "AR100": 0.6, "per_class": {}}
NAMES = [
    "1. person",
    "# car",
    "traffic_light",
    "a|b",
    "<b>x</b>",
    "$p$",
    "~~dog~~",
    "[c](http://d)",
]


def config_of(dataset="cells", **changes):
    config = with_classes(model_config("retinanet_r18_sepc"), None, NAMES)
    weights = replace(config.weights, dataset=dataset, **changes)
    return replace(config, weights=weights)


def render(card):
    """As GitHub's Markdown, near which the hub's is; what is HTML stays it."""
    return MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(ModelCard(card).text)


def visible(html):
    return html.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_names_are_shown_as_they_are():
    html = render(model_card(config_of()))
    assert f"<p>In this order: {', '.join(NAMES)}.</p>" in visible(html)
    for tag in ("<ol", "<b>", "<s>", "<a "):
        assert tag not in html


def test_a_data_set_is_named_as_it_is():
    html = render(model_card(config_of(), METRICS, dataset="my_val *2* <i>"))
    assert "<p>Measured with sepc_zoo on my_val *2* <i>:</p>" in visible(html)
    assert "<em>" not in html


def test_what_training_measured_is_of_its_validation_split():
    assert "on the validation split of cells:" in model_card(config_of(), METRICS)


def test_results_are_a_table_of_what_was_measured():
    html = render(model_card(config_of(), METRICS))
    assert [part.split("<")[0] for part in html.split("<th>")[1:]] == ["AP", "AP50"]
    assert [part.split("<")[0] for part in html.split("<td>")[1:]] == ["0.312", "0.500"]


def test_the_model_index_has_our_figures_alone():
    data = ModelCard(model_card(config_of(), METRICS)).data
    assert data.model_name == "retinanet_r18_sepc"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {"ap": 0.3123, "ap50": 0.5}
    assert {(r.task_type, r.dataset_name) for r in data.eval_results} == {
        ("object-detection", "cells")
    }


def test_published_figures_are_the_authors_and_in_no_index():
    card = ModelCard(model_card(authors_config("fsaf_r50_sepc")))
    assert "41.6 on COCO val2017 is theirs" in card.text
    assert card.data.eval_results is None


@pytest.mark.parametrize(
    ("dataset", "ids"),
    [
        ("cells", ["cells"]),
        ("my photos", ["my-photos"]),
        ("org/cells", ["org/cells"]),
        ("a + b c", ["a", "b-c"]),
        ("", None),
    ],
)
def test_data_sets_are_ids_of_the_hub(dataset, ids):
    assert ModelCard(model_card(config_of(dataset))).data.datasets == ids


def test_the_front_matter_says_what_the_hub_files_it_under():
    data = ModelCard(model_card(config_of(license="mit"))).data
    assert (data.library_name, data.pipeline_tag) == ("sepc_zoo", "object-detection")
    assert data.license == "mit"


def test_the_front_matter_comes_back_as_it_went():
    card = ModelCard(model_card(config_of(), METRICS))
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_training_is_told_in_words():
    facts = {
        "weight_decay": 0.05,
        "freeze_bn": False,
        "layer_decay": None,
        "augmentation": {"hflip": 0.5, "scale": (0.8, 1.2), "color_jitter": True},
    }
    html = render(model_card(config_of(), training=facts))
    for line in (
        "weight decay: 0.05",
        "freeze bn: no",
        "layer decay: none",
        "augmentation: hflip 0.5, scale (0.8, 1.2), color jitter yes",
    ):
        assert f"<li>{line}</li>" in html


def test_the_card_tells_how_to_load_the_model():
    card = model_card(config_of(), repo_id="zoo/cells")
    assert "pip install sepc_zoo" in card
    assert 'create_model("hf-hub:zoo/cells")' in card
    assert "local-dir" not in card
