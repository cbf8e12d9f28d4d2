"""Layer scaling against a loop, the reference outputs and its JSON form."""

import pytest
import timm
import torch
from _helpers.golden import golden_output, golden_vectors

from lwptv_lightning import LiNeS, MergeRecipe, TaskVectors, merge
from lwptv_lightning.layers import trace_layers
from lwptv_lightning.registry import UnknownNameError

NAMES = ["stem.0.weight", "blocks.0.mlp.0.weight", "blocks.1.mlp.0.weight", "blocks.2.mlp.0.weight", "head.weight"]


def make_vectors(tasks: int = 2) -> TaskVectors:
    torch.manual_seed(0)
    base = {name: torch.randn(3) for name in NAMES}
    return TaskVectors.open(base, {f"t{t}": {n: v + torch.randn(3) for n, v in base.items()} for t in range(tasks)})


@pytest.mark.parametrize("blocks", [None, r"^blocks\.(\d+)\."])
def test_lines_equals_a_loop(blocks: str | None) -> None:
    vectors = make_vectors()
    merged = merge(vectors, MergeRecipe(scale=0.5, layer_scaling=LiNeS(alpha=0.2, beta=0.6, blocks=blocks)))
    factors = dict(zip(NAMES, (0.2, 0.2, 0.5, 0.8, 0.2), strict=True))
    for name, factor in factors.items():
        expected = vectors.base(name) + 0.5 * factor * vectors.stack(name).sum(0)
        torch.testing.assert_close(merged[name], expected)


def test_lines_without_alpha_uses_the_published_quotient() -> None:
    vectors = make_vectors(tasks=3)
    merged = merge(vectors, MergeRecipe("ties", layer_scaling=LiNeS(beta=0)))
    plain = merge(vectors, MergeRecipe("ties"))
    summed = sum(vectors.stack(name).sum(0).abs().sum() for name in NAMES)
    combined = sum((plain[name] - vectors.base(name)).abs().sum() for name in NAMES)
    for name in NAMES:
        moved = plain[name] - vectors.base(name)
        torch.testing.assert_close(merged[name] - vectors.base(name), moved * summed / combined / 3)


def test_lines_matches_the_reference() -> None:
    recipe = MergeRecipe(scale=1.0, layer_scaling=LiNeS(beta=0.5, blocks=r"\.resblocks\.(\d+)\."))
    merged = merge(golden_vectors("main"), recipe)
    for name, expected in golden_output("lines.ta_nb").items():
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=0)


def test_a_single_block_is_scaled_by_the_sum() -> None:
    assert LiNeS(beta=0.5, blocks=r"b\.(\d+)\.").factors(["b.0.w", "head"], 0.25) == {"b.0.w": 0.75, "head": 0.25}


def test_default_blocks_of_a_timm_model_are_its_blocks() -> None:
    model = timm.create_model("convnext_atto", pretrained=False, depths=(1, 2, 1, 2), dims=(8, 8, 8, 8), num_classes=0)
    names = trace_layers(model).tensors
    factors = LiNeS(beta=1.0).factors(names, 0.0)
    assert factors["stem.0.weight"] == 0
    assert factors["stages.1.blocks.0.mlp.fc1.weight"] < factors["stages.3.blocks.1.mlp.fc1.weight"] == 1


def test_a_mapping_scales_the_layers_it_names() -> None:
    vectors = make_vectors()
    merged = merge(vectors, MergeRecipe(scale=1.0, layer_scaling={"head": 0.0, "blocks.0.mlp.0": 2.0}))
    assert torch.equal(merged["head.weight"], vectors.base("head.weight"))
    expected = vectors.base("blocks.0.mlp.0.weight") + 2 * vectors.stack("blocks.0.mlp.0.weight").sum(0)
    torch.testing.assert_close(merged["blocks.0.mlp.0.weight"], expected)


@pytest.mark.parametrize("scaling", [None, LiNeS(alpha=0.1, blocks=r"(\d)"), {"head": 0.5}])
def test_recipes_with_layer_scaling_survive_json(scaling: object) -> None:
    recipe = MergeRecipe(layer_scaling=scaling)
    assert MergeRecipe.from_json(recipe.to_json()) == recipe


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="one group"):
        LiNeS(blocks="blocks")
    with pytest.raises(ValueError, match="regular expression"):
        LiNeS(blocks="(")
    with pytest.raises(ValueError, match="beta must be finite"):
        LiNeS(beta=float("nan"))
    with pytest.raises(ValueError, match="no blocks"):
        merge(make_vectors(), MergeRecipe(layer_scaling=LiNeS(blocks=r"nothing\.(\d+)")))
    with pytest.raises(UnknownNameError, match="Did you mean 'head'"):
        merge(make_vectors(), MergeRecipe(layer_scaling={"heads": 0.5}))
    with pytest.raises(TypeError, match="layer_scaling"):
        MergeRecipe(layer_scaling="lines")


def test_a_pattern_that_would_run_for_ever_is_refused_by_name(monkeypatch):
    from lwptv_lightning.checkpoints import found_groups

    monkeypatch.setattr(found_groups, "__defaults__", (0.5,))
    with pytest.raises(ValueError, match=r"blocks='\(a\+\)\+\$': patterns that take more than 0\.5 s"):
        LiNeS(blocks="(a+)+$").factors(["a" * 40 + "!"], 1.0)


@pytest.mark.parametrize("pattern", [r"(x)?\.weight", r"(\w+)\.weight"])
def test_a_group_that_finds_no_number_is_named(pattern):
    with pytest.raises(
        ValueError, match=r"blocks='.*' must find the number of a block by its group, and found (None|'fc')"
    ):
        LiNeS(blocks=pattern).factors(["fc.weight"], 1.0)
