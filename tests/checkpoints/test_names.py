"""Each library's own small model with random weights, loaded into timm's: both must compute the same."""

import json
import pickle

import pytest
import timm
import torch
from _helpers.checkpoint_files import STATE, assert_holds_state, lightning_checkpoint
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import TensorHeader, align_prefix, match_names

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def timm_clip(name="vit_base_patch32_clip_quickgelu_224", num_classes=24):
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **sizes).eval()


def open_clip_model():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()
    return model, model.encode_image


def open_clip_visual():
    model, encode = open_clip_model()
    return model.visual, encode


def transformers_config(**changes):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    return transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=24, **changes)


def transformers_projection():
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(transformers_config()).eval()
    return model, lambda images: model(images).image_embeds


def transformers_vision():
    from transformers import CLIPVisionModel

    model = CLIPVisionModel(transformers_config()).eval()
    return model, lambda images: model(images).pooler_output


def headers(model):
    return {name: TensorHeader.of(tensor) for name, tensor in model.state_dict().items()}


def plain(state):
    return state


def under(prefix):
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


CASES = [
    (open_clip_model, plain, 24),
    (open_clip_model, under("model."), 24),  # as task_vectors' image encoders are saved
    (open_clip_model, under("module."), 24),
    (open_clip_visual, plain, 24),
    (open_clip_model, plain, 0),
    (transformers_projection, plain, 24),
    (transformers_projection, under("model."), 24),
    (transformers_projection, plain, 0),
    (transformers_vision, plain, 0),
    (transformers_vision, under("vision_model."), 0),
]


@pytest.mark.parametrize("with_model", [True, False], ids=["timm's map", "names alone"])
@pytest.mark.parametrize(("make", "rename", "classes"), CASES)
def test_converted_weights_compute_the_same_in_timm(make, rename, classes, with_model):
    if make is not open_clip_model and make is not open_clip_visual:
        pytest.importorskip("transformers")
    source, encode = make()
    target = timm_clip(num_classes=classes)
    checkpoint = open_checkpoint(rename(source.state_dict()))
    converted = match_names(checkpoint, headers(target), target if with_model else None)
    converted = pickle.loads(pickle.dumps(converted))
    target.load_state_dict({name: converted.read(name) for name in converted.names})
    with torch.no_grad():
        expected = encode(IMAGES)
        if classes == 0 and expected.shape[-1] == 24:  # compare before the projection
            projection = source.state_dict().get("visual.proj", None)
            matrix = source.state_dict()["visual_projection.weight"].T if projection is None else projection
            assert torch.allclose(target(IMAGES) @ matrix, expected, atol=1e-5)
        else:
            assert torch.allclose(target(IMAGES), expected, atol=1e-5)


def test_a_conversion_of_one_tensor_reads_that_tensor_alone(counting_checkpoint):
    source, _ = open_clip_model()
    checkpoint, reads = counting_checkpoint(source.state_dict())
    converted = match_names(checkpoint, headers(timm_clip()), timm_clip())
    assert not reads
    converted.read("blocks.1.attn.qkv.weight")
    assert dict(reads) == {"visual.transformer.resblocks.1.attn.in_proj_weight": 1}


def test_base_and_tasks_of_three_libraries_merge_in_timms_names():
    pytest.importorskip("transformers")
    target = timm_clip()
    vectors = TaskVectors.open(
        open_clip_model()[0], {"a": transformers_projection()[0], "b": timm_clip()}, model=target
    )
    assert set(vectors.names) == set(target.state_dict())
    assert vectors.stack("blocks.0.attn.qkv.weight").shape == (2, 144, 48)


def test_without_a_model_the_bases_names_are_the_reference():
    pytest.importorskip("transformers")
    unprefixed = transformers_vision()[0].state_dict()
    base = under("vision_model.")({name: tensor + 1 for name, tensor in unprefixed.items()})
    assert set(TaskVectors.open(base, {"a": unprefixed}).names) == set(base)
    assert set(TaskVectors.open(unprefixed, {"a": base}).names) == set(unprefixed)


def write_transformers(folder, **changes):
    from transformers import CLIPVisionModel

    CLIPVisionModel(transformers_config(**changes)).save_pretrained(folder)
    return folder


def test_openai_weights_are_refused_by_the_plain_clip_model(tmp_path):
    write_transformers(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_act"] == "quick_gelu"
    gelu = timm_clip("vit_base_patch32_clip_224", 0)
    words = "trained with quick_gelu, but vit_base_patch32_clip_224 .*build timm's vit_base_patch32_clip_quickgelu_224"
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(tmp_path, {"a": tmp_path}, model=gelu)


def test_gelu_weights_are_refused_by_the_quickgelu_model(tmp_path):
    write_transformers(tmp_path, hidden_act="gelu")
    with pytest.raises(CheckpointError, match=r"trained with gelu, .* build timm's vit_base_patch32_clip_224 instead"):
        match_names(open_checkpoint(tmp_path), headers(timm_clip()), timm_clip())


def test_openais_own_files_and_open_clips_configuration_say_quickgelu(tmp_path):
    gelu = timm_clip("vit_base_patch32_clip_224")
    state = open_clip_model()[0].state_dict()
    with pytest.raises(CheckpointError, match="QuickGELU|quick_gelu"):
        match_names(open_checkpoint(state | {"input_resolution": torch.tensor(32)}), headers(gelu), gelu)
    torch.save(state, tmp_path / "m.pt")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    with pytest.raises(CheckpointError, match="quick_gelu"):
        match_names(open_checkpoint(tmp_path / "m.pt"), headers(gelu), gelu)
    (tmp_path / "open_clip_config.json").write_text("{")
    match_names(open_checkpoint(tmp_path / "m.pt"), headers(gelu), gelu)


def test_unknown_names_stay_as_they_are():
    checkpoint = open_checkpoint({"other.w": torch.ones(1)})
    assert match_names(checkpoint, headers(timm_clip())).names == ("other.w",)


def test_weights_in_memory_have_no_configuration_in_the_current_folder(tmp_path, monkeypatch):
    gelu = timm_clip("vit_base_patch32_clip_224")
    (tmp_path / "config.json").write_text('{"hidden_act": "quick_gelu"}')
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    monkeypatch.chdir(tmp_path)
    assert match_names(open_checkpoint(gelu), headers(gelu), gelu).names == tuple(gelu.state_dict())
    torch.save(gelu.state_dict(), "m.pt")
    with pytest.raises(CheckpointError, match="trained with quick_gelu"):
        match_names(open_checkpoint("m.pt"), headers(gelu), gelu)


def test_lightning_checkpoint_loses_the_prefix_of_its_only_attribute(make_trainer, tmp_path):
    module = lightning_checkpoint(make_trainer, tmp_path / "m.ckpt", net=nn.Linear(2, 3))
    checkpoint = open_checkpoint(tmp_path / "m.ckpt")
    assert checkpoint.names == ("weight", "bias")
    assert torch.equal(checkpoint.read("weight"), module.net.weight)
    assert torch.equal(pickle.loads(pickle.dumps(checkpoint)).read("weight"), module.net.weight)


def test_lightning_checkpoint_of_two_attributes(make_trainer, tmp_path):
    path = tmp_path / "m.ckpt"
    module = lightning_checkpoint(make_trainer, path, left=nn.Linear(2, 3), right=nn.Linear(2, 3))
    assert open_checkpoint(path).names == ("left.weight", "left.bias", "right.weight", "right.bias")
    with pytest.raises(CheckpointError, match=r"several prefixes, 'left\.', 'right\.'; name one with prefix="):
        align_prefix(open_checkpoint(path), ["weight", "bias"])
    given = open_checkpoint(path, prefix="right.")
    assert torch.equal(given.read("weight"), module.right.weight)


def test_empty_prefix_keeps_the_names_of_a_lightning_checkpoint(make_trainer, tmp_path):
    lightning_checkpoint(make_trainer, tmp_path / "m.ckpt", net=nn.Linear(2, 3))
    assert open_checkpoint(tmp_path / "m.ckpt", prefix="").names == ("net.weight", "net.bias")


def test_prefixes_strip_one_after_the_other():
    checkpoint = open_checkpoint({"a.b.w": torch.tensor([3.0])}).without_prefix("a.").without_prefix("b.")
    assert checkpoint.read("w").item() == 3


def test_prefix_that_no_name_has():
    with pytest.raises(CheckpointError, match=r"state dict: no tensor starts with prefix='net\.'\. w, half, steps\."):
        open_checkpoint(STATE, prefix="net.")


def test_align_prefix_takes_the_prefix_that_covers_most_names():
    state = {name: torch.ones(1) for name in ("ema.w", "model.net.w", "model.net.b")}
    assert align_prefix(open_checkpoint(state), ["w", "b"]).names == ("w", "b")


@pytest.mark.parametrize("names", [["net.w"], ["other"]])
def test_align_prefix_leaves_known_and_unrelated_names(names):
    checkpoint = open_checkpoint({"net.w": torch.ones(1)})
    assert align_prefix(checkpoint, names) is checkpoint


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_out(prefix):
    assert_holds_state(open_checkpoint({prefix + name: tensor for name, tensor in STATE.items()}))


def test_a_compiled_part_loses_its_prefix():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.compile(nn.Linear(2, 2))

    assert open_checkpoint(Whole()).names == ("backbone.weight", "backbone.bias")


def test_a_module_called_module_beside_others_keeps_its_name():
    state = {"module.w": torch.ones(1), "head.w": torch.ones(1)}
    assert open_checkpoint(state).names == tuple(state)


def test_a_given_prefix_may_be_a_wrappers():
    assert open_checkpoint({"module.w": torch.ones(1)}, prefix="module.").names == ("w",)
