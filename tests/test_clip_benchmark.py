"""The CLIP benchmark from end to end, offline: tiny random models of the same architecture and random images."""

import csv
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from _helpers.example_scripts import example_scripts
from torch.utils.data import TensorDataset

from lwptv_lightning import MergeRecipe

FOLDER = Path(__file__).parents[1] / "examples" / "clip_benchmark"
SUITES = sorted(FOLDER.glob("suite_*.yaml"))


@pytest.fixture(scope="module")
def run():
    with example_scripts("clip_benchmark") as script:
        yield script("run")


class FakeImages(TensorDataset):
    classes = ("cat", "dog", "traffic_light")

    def __init__(self, task, transform, training=False):
        generator = torch.Generator().manual_seed(len(task))
        super().__init__(torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % 3)


def write_models(folder, tasks):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 32, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    base = transformers.CLIPModel(config)
    base.save_pretrained(folder / "base")
    for task in tasks:
        expert = transformers.CLIPVisionModel(config.vision_config)
        state = base.vision_model.state_dict()
        names = expert.state_dict().keys()
        prefix = "" if names == state.keys() else "vision_model."
        expert.load_state_dict(
            {prefix + k: v + 0.01 * torch.randn_like(v) for k, v in state.items() if v.is_floating_point()}
        )
        expert.save_pretrained(folder / task)


def tiny_text_encoder():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
    return model.eval(), open_clip.get_tokenizer("ViT-B-32-quickgelu")


def test_dry_run(run, tmp_path, capsys):
    pytest.importorskip("open_clip")
    suite = run.Suite.read(FOLDER / "suite_8.yaml")
    write_models(tmp_path, suite.merged)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 24}
    suite = replace(suite, base=str(tmp_path / "base"), experts=str(tmp_path / "{task}"), model_options=sizes)
    recipes = [MergeRecipe(), MergeRecipe("ties", ratio=0.5), MergeRecipe("regmean")]
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options = {"load_images": FakeImages, "trainer_options": quiet}
    averages = run.benchmark(suite, recipes, tmp_path / "out", make_text_encoder=tiny_text_encoder, **options)
    assert [set(row) for row in averages] == [{"id/avg", "ood/avg"}] * 3
    columns, *rows = csv.reader((tmp_path / "out" / "results.csv").read_text().splitlines())
    assert [row[0] for row in rows] == [
        "base",
        "each expert alone",
        "task_arithmetic x 0.3",
        "ties x 1",
        next(row[0] for row in rows if row[0].startswith("control: ties x 0.")),
        "control: ties x 1, random 0.5, mean of 3 masks",
        "ties x 1, mean_abs 0.5",
        "regmean x 1",
    ]
    figures = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    for recipe, row in zip(recipes, averages, strict=True):
        assert {name: float(figures[recipe.describe()][name]) for name in row} == row
    printed = capsys.readouterr().out
    assert printed in (tmp_path / "out" / "report.md").read_text() + "\n"
    base = figures["base"]
    unseen = 50 * (float(base["ood/held_out/mnist"]) + float(base["ood/held_out/eurosat"]))
    merged = 100 * float(base["id/avg"])
    assert (
        f"| base | {merged:.1f} | 46.9 | {merged - 46.9:+.1f} | {unseen:.1f} | 46.6 | {unseen - 46.6:+.1f} |" in printed
    )
    assert re.search(r"\| task_arithmetic x 0.3 \| [\d.]+ \| 69.9 \| .* \| 59.1 \| ", printed)
    assert re.search(r"\| ties x 1, mean_abs 0.5 \| [\d.]+ \|  \|  \| [\d.]+ \|  \|  \|  \|", printed)
    assert all(f"id/{task}" in columns for task in suite.merged)
    assert all(f"ood/held_out/{name}" in columns for name in ("mnist", "eurosat", "avg"))
    assert all(f"ood/corrupted/{name}" in columns for name in ("sun397-pixelate", "sun397-motion_blur", "avg"))

    def refuse():
        raise AssertionError("the heads are cached")

    again = run.benchmark(suite, recipes[:1], tmp_path / "out", make_text_encoder=refuse, **options)
    assert again == averages[:1]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_names_known_tasks_once(path, run):
    suite = run.Suite.read(path)
    tasks = suite.merged + suite.held_out
    assert len(tasks) == len(set(tasks)) == int(path.stem.rpartition("_")[2])
    assert set(tasks) <= yaml.safe_load((FOLDER / "tasks.yaml").read_text()).keys()
    assert set(suite.corruptions) <= sys.modules["corruptions"].CORRUPTIONS.keys()


def test_a_corruption_is_the_same_each_time_and_changes_the_image(run):
    images = FakeImages("a", None)
    for name in sys.modules["corruptions"].CORRUPTIONS:
        corrupted = run.Corrupted(images, name)
        first, label = corrupted[1]
        assert first.shape == (3, 32, 32)
        assert torch.equal(first, corrupted[1][0])
        assert not torch.equal(first, images[1][0])
        assert label == images[1][1]


def test_a_stored_head_of_other_classes_is_refused(run, tmp_path):
    pytest.importorskip("open_clip")
    run.cached_heads(tmp_path, {"a": ["cat", "dog"]}, tiny_text_encoder)
    with pytest.raises(ValueError, match="is a head of 2 classes, expected 3; delete it"):
        run.cached_heads(tmp_path, {"a": ["cat", "dog", "bird"]}, tiny_text_encoder)


def test_a_stored_head_of_other_sentences_is_refused(run, tmp_path):
    pytest.importorskip("open_clip")
    first = run.cached_heads(tmp_path, {"a": ["cat"]}, tiny_text_encoder, {"a": ["a {}.", "the {}."]})
    with pytest.raises(ValueError, match="is a head of other sentences; delete it"):
        run.cached_heads(tmp_path, {"a": ["cat"]}, tiny_text_encoder)
    with pytest.raises(ValueError, match="is a head of other classes; delete it"):
        run.cached_heads(tmp_path, {"a": ["dog"]}, tiny_text_encoder, {"a": ["a {}.", "the {}."]})
    again = run.cached_heads(tmp_path, {"a": ["cat"]}, None, {"a": ["a {}.", "the {}."]})
    assert torch.equal(again["a"].weight, first["a"].weight)


def test_each_sentence_has_a_place_for_a_class(run):
    sentences = [sentence for about in run.TASKS.values() for sentence in about.get("sentences", ())]
    assert len(sentences) > 40
    assert all(sentence.count("{}") == 1 and sentence.format("x") != sentence for sentence in sentences)


def reference(run, suite):
    suite = run.Suite.read(FOLDER / suite)
    return sys.modules["published"].Reference.of(suite.model, suite.merged, suite.held_out)


def test_published_figures_stand_at_their_split(run):
    found = reference(run, "suite_8.yaml")
    assert found.is_of_this_split
    unseen = {name: averages[1] for name, averages in found.rows.items()}
    assert unseen["base"] == 46.6
    assert unseen["task_arithmetic"] == 59.1
    assert unseen["ties"] == 60.2
    assert unseen["regmean"] == 63.8
    assert unseen["experts"] is None
    assert reference(run, "suite_other_8.yaml").rows["regmean"] == (83.0, 49.2)
    for suite in ("suite_14.yaml", "suite_20.yaml"):
        assert reference(run, suite).rows.keys() == {"base", "experts"}
        assert not reference(run, suite).is_of_this_split


def test_another_model_another_split_or_another_set_has_no_published_figures(run):
    published = sys.modules["published"]
    suite = run.Suite.read(FOLDER / "suite_8.yaml")
    assert published.Reference.of("vit_base_patch16_clip_224", suite.merged, suite.held_out).rows == {}
    assert not published.Reference.of(suite.model, suite.held_out, suite.merged).is_of_this_split
    assert not published.Reference.of(suite.model, suite.merged[1:], suite.held_out).is_of_this_split
    assert published.Reference.of(suite.model, suite.merged, ["imagenet"]).rows == {}


def test_published_averages_are_those_of_the_sets_beside_them(run):
    published = sys.modules["published"]
    for split in published.PUBLISHED["splits"]:
        tasks = split["rows"]["base"]["sets"].keys()
        for row in split["rows"].values():
            assert row["sets"].keys() == tasks
            merged = [value for task, value in row["sets"].items() if task not in split["held_out"]]
            unseen = [row["sets"][task] for task in split["held_out"]]
            for stated, of in ((row["averages"]["merged"], merged), (row["averages"]["unseen"], unseen)):
                assert abs(stated - sum(of) / len(of)) < 0.11  # of figures that were rounded before


def test_the_table_says_where_figures_agree(run):
    published = sys.modules["published"]
    found = published.Reference({"base": (50.0, 40.0), "experts": (90.0, None)}, True)
    rows = [
        ("near", "base", (50.0 + published.TOLERANCE, 40.0 - published.TOLERANCE)),
        ("far", "base", (50.0, 40.1 + published.TOLERANCE)),
        ("half", "experts", (90.0, 10.0)),
        ("own", None, (90.0, 10.0)),
    ]
    lines = published.comparison(rows, found).splitlines()
    assert lines[2:6] == [
        "| near | 52.0 | 50.0 | +2.0 | 38.0 | 40.0 | -2.0 | agrees |",
        "| far | 50.0 | 50.0 | +0.0 | 42.1 | 40.0 | +2.1 | DIFFERS |",
        "| half | 90.0 | 90.0 | +0.0 | 10.0 |  |  | agrees |",
        "| own | 90.0 |  |  | 10.0 |  |  |  |",
    ]
    assert "No rule's figures are published" in published.comparison(rows, published.Reference())


def test_a_recipe_is_known_by_what_it_does(run):
    rows = sys.modules["rows"]
    assert rows.published_as(MergeRecipe("task_arithmetic")) == "task_arithmetic"
    assert rows.published_as(MergeRecipe("task_arithmetic", 0.2)) is None
    assert rows.published_as(MergeRecipe("ties")) is None
    assert rows.published_as(MergeRecipe({"name": "ties", "reduce": "sum"}, 0.3)) == "ties"
    assert rows.published_as(MergeRecipe("task_arithmetic", ratio=0.5)) is None
