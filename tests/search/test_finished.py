"""What is saved gives the figures of the report's row."""

import pytest
import torch
from _helpers.swept import small_loader, small_model, small_module, small_samples, validated

from lwptv_lightning import load_merged, read_heads, tune
from lwptv_lightning.search import install_chosen_

SPACE = {
    "rules": ["task_arithmetic", "ties"],
    "scores": ["mean_abs"],
    "ratios": [0.5],
    "scales": [0.5, 1],
    "gates": False,
}


def test_sets():
    names = {"id/a": 40, "id/b": 35, "ood/far": 60}
    return {name: small_loader(name, size, 9) for name, size in names.items()}


test_sets.__test__ = False


def tuned(trainer, module, **options):
    return tune(trainer, module, small_samples(), test_sets(), masks=2, **({"space": SPACE} | options))


@pytest.mark.parametrize("options", [{}, {"choice": "best"}, {"recalibrate": False}])
def test_the_saved_model_gives_the_figures_of_its_row(options, make_trainer, tmp_path):
    module = small_module()
    found = tuned(make_trainer(), module, **options)
    assert found.recalibrated is (options.get("recalibrate") is None)
    assert bool(found.norms) is found.recalibrated
    install_chosen_(module, found)
    path = module.save_merged(tmp_path / "m.safetensors", heads=True)
    loaded = load_merged(path, small_model(1))
    assert validated(make_trainer(), loaded, test_sets()) == pytest.approx(found.test.figures(found.name), abs=1e-6)
    held = validated(make_trainer(), small_module(found.recipe), test_sets())
    differs = held != pytest.approx(found.test.figures(found.name), abs=1e-6)
    assert differs is found.recalibrated  # by the measured statistics alone
    assert sorted(read_heads(tmp_path / "m.heads.safetensors")) == ["a", "b", "far"]


def test_a_recipe_of_rules_that_need_data_is_merged_with_what_was_collected(make_trainer, tmp_path):
    module = small_module()
    space = {"rules": ["fisher"], "ratios": [0], "scales": [1.5], "gates": False}
    validation = {name: small_loader(name, 60, 1) for name in ("id/a", "id/b")}
    given = {"space": space, "masks": 0, "choice": "best", "recalibrate": False}
    found = tune(make_trainer(), module, validation, test_sets(), **given)
    assert found.recipe.rule.name == "fisher"
    assert "20 validation samples of each ID set were set apart" in found.notes[0]
    install_chosen_(module, found)
    loaded = load_merged(module.save_merged(tmp_path / "m.safetensors", heads=True), small_model(1))
    assert validated(make_trainer(), loaded, test_sets()) == pytest.approx(found.test.figures(found.name), abs=1e-6)


def test_the_card_tells_the_figures(make_trainer, tmp_path):
    module = small_module()
    found = tuned(make_trainer(), module)
    install_chosen_(module, found)
    folder = module.save_merged(tmp_path / "model", heads=True)
    card = (folder / "README.md").read_text()
    figures = {name: found.test.figures(name) for name in (found.name, "base", "expert a")}
    assert f"{figures[found.name]['ood/avg']:.4f}" in card
    assert f"{figures['base']['ood/avg']:.4f}" in card
    assert f"{figures['expert a']['id/a']:.4f}" in card
    with torch.no_grad():
        next(module.model.parameters()).add_(1)
    other = module.save_merged(tmp_path / "other", heads=True)
    assert "| this model |" not in (other / "README.md").read_text()
