"""A base, its tasks and a model of different image sizes: named with both, or brought to one where asked for."""

import re

import pytest
import torch
from _helpers.states import assert_same_bits, noise
from safetensors.torch import save_file
from timm.models import vision_transformer
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from lwptv_lightning import CheckpointError, MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import Provenance, fingerprint
from lwptv_lightning.cli import main
from lwptv_lightning.inspection import SAME_BASE, check, verify

SUM = {"rule": "task_arithmetic", "scale": 1.0}


def vit(size=32, seed=0, **more):
    torch.manual_seed(seed)
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3, "pre_norm": True, **more}
    return vision_transformer.VisionTransformer(img_size=size, patch_size=8, norm_layer=nn.LayerNorm, **options)


def at(size, state):
    """A ViT's state at another size, as timm brings it there."""
    return vision_transformer.checkpoint_filter_fn(dict(state), vit(size))


def tuned(state, seed=1):
    return noise(state, seed, 0.01)


BASE = vit().state_dict()
SIZES = re.escape("4x4 (32 px)"), re.escape("6x6 (48 px)")


def test_an_expert_of_another_size_is_named_with_both_grids():
    expert = at(48, tuned(BASE))
    words = f"task 'a' .*'pos_embed' has positions of {SIZES[1]}, expected {SIZES[0]}.*resize_position_embedding=True"
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(BASE, {"a": expert})
    (found,) = check(BASE, {"a": expert})
    assert re.search(f"{SIZES[1]}, expected {SIZES[0]}", found.verdict)


def test_a_base_of_another_size_than_the_model_is_blamed_itself():
    for experts in ({"a": tuned(BASE)}, {"a": at(48, tuned(BASE))}):
        words = f"does not fit the model.*'pos_embed' has positions of {SIZES[0]}, expected {SIZES[1]}"
        with pytest.raises(CheckpointError, match=words):
            TaskVectors.open(BASE, experts, model=vit(48))
        with pytest.raises(CheckpointError, match=words):
            check(BASE, experts, model=vit(48))
    with pytest.raises(CheckpointError, match=f"task 'a'.*of {SIZES[0]}, expected {SIZES[1]}"):
        TaskVectors.open(at(48, BASE), {"a": tuned(BASE)}, model=vit(48))


def test_a_model_of_another_size_that_is_to_be_merged_into_is_named():
    vectors = TaskVectors.open(BASE, {"a": tuned(BASE)})
    with pytest.raises(ValueError, match=f"'pos_embed' has positions of {SIZES[0]}, expected {SIZES[1]}"):
        MergeModule(vit(48), vectors, "ties")


@pytest.mark.parametrize("size", [32, 48, 64])
def test_all_are_brought_to_the_models_size_where_that_is_asked_for(size):
    experts = {"small": tuned(BASE, 1), "large": at(48, tuned(BASE, 2))}
    vectors = TaskVectors.open(BASE, experts, model=vit(size), resize_position_embedding=True)
    expected = {task: at(size, state) for task, state in {"": BASE, **experts}.items()}
    assert vectors.resized == ("pos_embed",)
    assert_same_bits({name: vectors.base(name) for name in BASE}, expected[""])
    for task in experts:
        assert_same_bits({name: vectors.expert(task, name) for name in BASE}, expected[task])
    module = MergeModule(vit(size), vectors.select(["small"]), SUM).merge_()
    assert torch.allclose(module.model.pos_embed, expected["small"]["pos_embed"], atol=1e-6)


def test_without_a_model_all_are_brought_to_the_bases_size():
    expert = at(48, tuned(BASE))
    for base in (BASE, vit()):
        vectors = TaskVectors.open(base, {"a": expert, "b": tuned(BASE, 2)}, resize_position_embedding=True)
        assert vectors.resized == ("pos_embed",)
        assert torch.equal(vectors.expert("a", "pos_embed"), at(32, expert)["pos_embed"])
    assert TaskVectors.open(BASE, {"b": tuned(BASE)}, resize_position_embedding=True).resized == ()
    (found,) = check(BASE, {"a": expert}, resize_position_embedding=True)
    assert found.verdict == SAME_BASE


def test_names_of_another_library_are_not_resampled_unasked():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 9, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1}
    base = open_clip.CLIP(16, vision, text).state_dict()
    experts = {"a": tuned(base), "b": vit(48, num_classes=16).state_dict()}
    model = vit(48, num_classes=16)
    words = f"the image sizes differ: 'visual.positional_embedding' has positions of {SIZES[0]}, expected {SIZES[1]}"
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(base, experts, model=model)
    with pytest.raises(CheckpointError, match=f"task 'a': .*{words}"):
        TaskVectors.open(model.state_dict(), experts, model=model)
    vectors = TaskVectors.open(base, experts, model=model, resize_position_embedding=True)
    own = vision_transformer.checkpoint_filter_fn(dict(base), model)["pos_embed"]
    assert vectors.resized == ("pos_embed",)
    assert torch.equal(vectors.base("pos_embed"), own)
    alone = TaskVectors.open(base, {"a": tuned(base)}, model=model, exclude=["pos_embed"])
    assert "pos_embed" not in alone.names


def test_windows_and_what_is_computed_of_them():
    def swin(window):
        torch.manual_seed(window)
        return SwinTransformer(
            img_size=8 * window, window_size=window, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=0
        ).state_dict()

    def original(window):  # as the first release had it
        index = {f"layers.{i}.blocks.0.attn.relative_position_index": torch.arange(window**2) for i in range(2)}
        return swin(window) | index | {"layers.0.blocks.0.attn_mask": torch.ones(window, 4, 4)}

    with pytest.raises(CheckpointError, match=r"has positions of windows of 4x4, expected windows of 7x7\."):
        TaskVectors.open(swin(7), {"a": swin(4)})
    vectors = TaskVectors.open(original(7), {"a": original(4)}, resize_position_embedding=True)
    assert len(vectors.resized) == 5
    assert not vectors.doubts or "no floating number" not in " ".join(vectors.doubts)
    assert vectors.stack("layers.0.blocks.0.attn.relative_position_bias_table").shape == (1, 169, 2)
    tables = [name for name in vectors.resized if name.endswith("bias_table")]
    only = {name: value for name, value in original(4).items() if name not in tables}
    with pytest.raises(CheckpointError, match=r"The image sizes differ, as 'layers\.0\.\S+' tells"):
        TaskVectors.open(original(7), {"a": {**only, **{name: swin(7)[name] for name in tables}}})


def test_differences_are_from_weights_at_their_own_size(tmp_path):
    expert = tuned(BASE)
    tau = {name: expert[name] - BASE[name] for name in BASE}
    about = {"lwptv_kind": "task_vector", "lwptv_base_fingerprint": fingerprint(open_checkpoint(BASE))}
    save_file(tau, tmp_path / "task_vector.safetensors", metadata=about)
    vectors = TaskVectors.open(BASE, {"a": tmp_path}, model=vit(48), resize_position_embedding=True)
    expected = at(48, expert)["pos_embed"] - at(48, BASE)["pos_embed"]
    assert torch.allclose(vectors.stack("pos_embed")[0], expected, atol=1e-6)
    assert torch.equal(vectors.stack("norm.weight")[0], tau["norm.weight"])
    del about["lwptv_base_fingerprint"]
    save_file(tau, tmp_path / "task_vector.safetensors", metadata=about)
    with pytest.raises(CheckpointError, match=f"the difference of 'pos_embed'.*of {SIZES[0]}, expected {SIZES[1]}"):
        TaskVectors.open(at(48, BASE), {"a": tmp_path})


def test_one_task_more(tmp_path):
    vectors = TaskVectors.open(BASE, {"a": tuned(BASE)})
    with pytest.raises(CheckpointError, match=f"of {SIZES[1]}, expected {SIZES[0]}"):
        vectors.with_task("b", at(48, tuned(BASE, 2)))


def test_a_merge_says_what_was_resampled_and_is_made_again(tmp_path):
    sources = {}
    for name, state in {"base": BASE, "a": tuned(BASE, 1), "b": at(48, tuned(BASE, 2))}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        sources[name] = str(tmp_path / f"{name}.safetensors")
    base, tasks, out = sources.pop("base"), sources, tmp_path / "merged.safetensors"
    vectors = TaskVectors.open(base, tasks, resize_position_embedding=True)
    save_merged(vectors, MergeRecipe("ties"), out)
    about = Provenance.of(open_checkpoint(out))
    assert about.resized == ["pos_embed"]
    assert "timm" in about.versions
    assert verify(out, base, tasks).passed
    assert_same_bits(merge(vectors, MergeRecipe("ties")), {n: open_checkpoint(out).read(n) for n in BASE})
    again = tmp_path / "again.safetensors"
    given = [f"{task}={path}" for task, path in tasks.items()]
    main(["merge", base, *given, "--rule", "ties", "--resize-position-embedding", "--out", str(again)])
    assert again.read_bytes() == out.read_bytes()
    main(["verify", str(again), base, *given])
    main(["check", base, *given, "--resize-position-embedding"])
    with pytest.raises(SystemExit):
        main(["check", base, *given])


def test_adapters_are_of_weights_at_any_size(tmp_path):
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model

    model = vit()
    adapted = get_peft_model(vit(), LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    vectors = TaskVectors.open(model, {"a": tmp_path, "b": tuned(BASE)}, model=vit(48), resize_position_embedding=True)
    assert vectors.resized == ("pos_embed",)
    assert vectors.stack("blocks.0.attn.qkv.weight")[0].any()
    assert not vectors.stack("pos_embed")[0].any()
