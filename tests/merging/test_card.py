import json
import math
import re
import shlex
from dataclasses import replace

import pytest
import torch
import yaml
from _helpers.odd_names import HONEST, HOSTILE, steering
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import MergeRecipe, Provenance, TaskVectors, open_checkpoint, save_merged, trace_layers
from lwptv_lightning.checkpoints import CheckpointError
from lwptv_lightning.merging import BaseCard, Loading, card_of, model_card

MADE = Provenance(
    kind="merged",
    base="b3_0",
    tasks={"svhn": "b3_1", "gtsrb": None},
    recipe=MergeRecipe("ties", ratio=0.5).to_dict(),
    scale=1.0,
    mask={"svhn": ["fc2"], "gtsrb": ["fc1", "fc2"]},
    layers={"fc1": ["fc1.weight"], "fc2": ["fc2.weight"]},
    versions={"lwptv_lightning": "0.1.0"},
)
FIGURES = {"id/svhn": 0.75, "ood/mnist": 0.5, "id/avg": 0.75, "ood/avg": 0.5}


class Counter(nn.Module):
    """Has an integer alone, which is never merged."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.tensor(3))

    def forward(self, features):
        return features


def section(card, title):
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def test_the_hubs_own_reader_reads_the_metadata():
    base = BaseCard(
        name="owner/base",
        license="other",
        license_name="odd",
        license_link="https://example.org/l",
        pipeline_tag="image-classification",
    )
    text = model_card(MADE, FIGURES, base=base, merged_from=["owner/svhn"], loading=Loading(library="timm"))
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.tags == ["merge", "lwptv-lightning"]
    assert data.library_name == "timm"
    assert data.base_model == ["owner/base", "owner/svhn"]
    assert data.to_dict()["base_model_relation"] == "merge"
    assert (data.license, data.license_name, data.license_link) == ("other", "odd", "https://example.org/l")
    assert data.pipeline_tag == "image-classification"
    assert data.model_name == "Merged model"
    assert {each.dataset_name: each.metric_value for each in data.eval_results} == {
        "id svhn": 0.75,
        "ood mnist": 0.5,
        "ID avg": 0.75,
        "OOD avg": 0.5,
    }
    assert {each.metric_type for each in data.eval_results} == {"accuracy"}


def test_without_figures_a_licence_or_the_hub_none_is_claimed():
    text = model_card(MADE)
    data = ModelCard(text).data.to_dict()
    assert data == {"tags": ["merge", "lwptv-lightning"], "base_model_relation": "merge"}
    assert section(text, "Figures").startswith("None: no evaluation was at hand")
    assert section(text, "Licence").startswith("None is claimed")


def test_the_recipe_is_what_lwptv_merge_takes(tmp_path):
    code = section(model_card(MADE), "Recipe").partition("```json\n")[2].partition("\n```")[0]
    assert MergeRecipe.from_json(code) == MergeRecipe("ties", ratio=0.5)
    assert yaml.safe_load(code) == json.loads(code)


def test_tasks_and_fingerprints_are_listed():
    rows = section(model_card(MADE), "What it was made of").splitlines()[2:]
    assert rows == ["| base | b3_0 |", "| task svhn | b3_1 |", "| task gtsrb |  |"]


def test_pruned_layers_are_counted_and_named():
    text = section(model_card(MADE), "Layers pruned")
    assert "| task svhn | 1 | 2 |\n| task gtsrb | 0 | 2 |" in text
    assert "<details><summary>Their names</summary>\n\n- task svhn: fc1\n- task gtsrb: none\n\n</details>" in text
    assert "None" in section(model_card(replace(MADE, mask=None)), "Layers pruned")


@pytest.mark.parametrize("traced", [True, False])
def test_layers_of_a_real_file_are_those_that_its_mask_is_of(traced, tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), Counter(), nn.Linear(4, 4), nn.Linear(4, 2))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    tasks = {
        task: {
            name: value + 0.01 * torch.randn_like(value) if value.is_floating_point() else value
            for name, value in base.items()
        }
        for task in "ab"
    }
    vectors = TaskVectors.open(base, tasks, exclude=("4.*",))
    layers = trace_layers(model) if traced else None
    path = save_merged(vectors, MergeRecipe(ratio=0.5), tmp_path / "merged.safetensors", layers)
    text = card_of(path)
    # 0, 1 and 3 are merged, 4 is excluded; half of three, rounded down, is one.
    assert "| task a | 1 | 3 |\n| task b | 1 | 3 |" in section(text, "Layers pruned")
    assert "--exclude '4.*'" in section(text, "Make it again")


def test_where_nothing_tells_the_layers_only_tasks_are_listed():
    text = section(model_card(replace(MADE, layers=None), names=["other.weight"]), "Layers pruned")
    assert "| task svhn |  |  |" in text
    assert "<details>" not in text


def test_figures_stand_beside_their_controls_and_what_is_missing_is_said():
    controls = {"base": {"id/avg": 0.5, "ood/avg": 0.75}, "unpruned": {"id/avg": 0.625}}
    text = section(model_card(MADE, FIGURES, controls=controls), "Figures")
    assert "| model | id svhn | ood mnist | ID avg | OOD avg |" in text
    assert "| this model | 0.7500 | 0.5000 | 0.7500 | 0.5000 |" in text
    assert "| base |  |  | 0.5000 | 0.7500 |" in text
    assert "| unpruned |  |  | 0.6250 |  |" in text
    assert text.endswith("Not measured beside it: each fine-tuned model on its own set.")
    assert "without pruning" not in section(model_card(replace(MADE, mask=None), FIGURES), "Figures")


def test_what_is_no_number_goes_into_no_result():
    text = model_card(MADE, {"id/a": math.nan, "id/b": math.inf, "id/c": 0.5})
    assert [each.dataset_name for each in ModelCard(text).data.eval_results] == ["id c"]
    assert "| this model | nan | inf | 0.5000 |" in text
    with pytest.raises(TypeError, match="figure 'id/a' of 'this model' must be a number, not"):
        model_card(MADE, {"id/a": "0.5"})
    with pytest.raises(TypeError, match="the figures of 'base' must be a mapping"):
        model_card(MADE, controls={"base": 0.5})


@pytest.mark.parametrize("kind", ["task_vector", "base", None])
def test_only_a_merged_model_has_a_card(kind):
    with pytest.raises(CheckpointError, match="a model card is of a merged model"):
        model_card(replace(MADE, kind=kind))


def test_a_rule_that_is_not_registered_here_is_named():
    made = replace(MADE, recipe={"rule": {"name": "of <elsewhere>"}, "granularity": "other"}, layers=None)
    assert r"merged by of \<elsewhere\> without" in model_card(made, names=["fc1.weight"])


@pytest.mark.parametrize(
    "name", [*HOSTILE, *HONEST, "---", "...", "- x", "a: b", "```\n# x", "'; rm -rf ~; '", "</details>"]
)
def test_names_are_text_wherever_they_stand(name):
    made = Provenance(
        kind="merged",
        tasks={name: name, "b": None},
        base=name,
        recipe=MergeRecipe(ratio=0.5, keep=(name,)).to_dict() | {"task": name},
        mask={name: [name], "b": []},
        layers={name: [name], f"{name}2": ["x"]},
        excluded=[name],
        versions={name: name},
        changed=[name],
        evaluated_in=[name],
    )
    figures = {f"id/{name}": 0.5, "ood/avg": 0.25}
    text = model_card(made, figures, controls={name: figures}, metric=name, name=name)
    assert not steering(text)
    text.encode("utf-8")
    card = ModelCard(text)
    assert {each.metric_value for each in card.data.eval_results} == {0.5, 0.25}
    titles = [line for line in card.content.splitlines() if line.startswith("## ")]
    assert titles == [
        "## What it was made of",
        "## Recipe",
        "## Layers pruned",
        "## Figures",
        "## Load it",
        "## Make it again",
        "## Licence",
        "## Versions",
    ]
    prose = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", card.text, flags=re.DOTALL | re.MULTILINE)
    for own in (
        "<details><summary>Their names</summary>",
        "</details>",
        "`recipe.json`",
        "`OUT`",
        "`--model`",
        "`--prefix`",
        "`--ema`",
    ):
        assert prose.count(own) == 1
        prose = prose.replace(own, "")
    assert not re.search(r"(?<!\\)[<`]", prose)
    links = re.findall(r"(?<!\\)\]\((.*?)\)", prose)
    assert links == ["https://arxiv.org/abs/2506.09093"]


@pytest.mark.parametrize("name", ["a b", "it's", "$(touch x)", "`touch x`", "a;b", "*", "-x"])
def test_the_commands_quote_what_a_shell_would_run(name):
    text = section(model_card(replace(MADE, tasks={name: None}, excluded=[name])), "Make it again")
    commands = re.search(r"(`{3,})bash\n(.*?)\n\1", text, re.DOTALL)[2].splitlines()
    merge = [
        "lwptv",
        "merge",
        "BASE",
        f"{name}=CHECKPOINT",
        "--recipe",
        "recipe.json",
        "--exclude",
        name,
        "--out",
        "OUT",
    ]
    assert [shlex.split(command) for command in commands] == [
        merge,
        ["lwptv", "verify", "OUT", "BASE", f"{name}=CHECKPOINT"],
    ]


def test_an_adapter_has_a_card_of_its_own():
    text = model_card(replace(MADE, kind="adapter"), base=BaseCard(name="owner/base"), loading=Loading(library="peft"))
    data = ModelCard(text).data
    assert data.library_name == "peft"
    assert data.to_dict()["base_model_relation"] == "adapter"
    assert "as a LoRA adapter for it" in text
    assert "--as-lora RANK --out OUT\n```" in section(text, "Make it again")
    assert "lwptv verify" not in text


def test_a_folder_has_its_card_with_what_the_bases_card_says(tmp_path):
    base = tmp_path / "models--owner--base" / "snapshots" / "0"
    expert = tmp_path / "models--owner--svhn" / "snapshots" / "0"
    for folder, value in ((base, 0.0), (expert, 1.0)):
        folder.mkdir(parents=True)
        save_file({"fc.weight": torch.full((2, 2), value), "fc.bias": torch.zeros(2)}, folder / "model.safetensors")
    (base / "README.md").write_text("---\nlicense: apache-2.0\npipeline_tag: image-classification\n---\n# Base\n")
    out = save_merged(TaskVectors.open(base, {"svhn": expert}), "ties", tmp_path / "my model")
    text = (out / "README.md").read_text()
    data = ModelCard(text).data
    assert data.base_model == ["owner/base", "owner/svhn"]
    assert (data.license, data.pipeline_tag) == ("apache-2.0", "image-classification")
    assert "\n# my model\n" in text
    assert Provenance.of(open_checkpoint(out)).tasks["svhn"] in text
    assert str(tmp_path) not in text
    assert text == card_of(out, name="my model", base=BaseCard.beside(base), merged_from=["owner/svhn"])


def test_what_a_model_is_without_is_said():
    text = model_card(replace(MADE, left_out=["head.weight", "head.bias"], notes=["Resized to 32 <b>."]))
    assert "It is without 2 tensors of the base, its classifier: the tasks have their own." in text
    assert "Resized to 32 \\<b\\>." in text
