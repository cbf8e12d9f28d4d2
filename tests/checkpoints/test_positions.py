"""Which tensors of which models have positions of images, and that they are resampled as timm does."""

import pickle

import open_clip
import pytest
import timm
import torch
from timm.models import beit, swin_transformer, vision_transformer
from torch import nn

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import TensorHeader, grids_in, only_grid, reference_of, resized, sizes_told

pytestmark = pytest.mark.filterwarnings("ignore:torch.searchsorted", "ignore:Using a non-tuple")
TINY = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}


def vit(size=32, **more):
    return vision_transformer.VisionTransformer(img_size=size, patch_size=8, **{**TINY, **more})


def swin(window):
    return swin_transformer.SwinTransformer(
        img_size=8 * window, window_size=window, embed_dim=16, depths=(1, 1), num_heads=(2, 2), num_classes=0
    )


def clip(size=32):
    vision = {"image_size": size, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    return open_clip.CLIP(16, vision, {"context_length": 9, "vocab_size": 20, "width": 32, "heads": 2, "layers": 1})


def found(model, told=None):
    return {name: str(grid) for name, grid in grids_in(TensorHeader.of_all(model.state_dict()), told).items()}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (vit, "4x4 (32 px)"),
        (lambda: vit(class_token=False, global_pool="avg"), "4x4 (32 px)"),
        (lambda: vit(reg_tokens=4), "4x4 (32 px)"),
        (lambda: vit(reg_tokens=4, no_embed_class=True), "4x4 (32 px)"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224", depth=1), "14x14 (224 px)"),
        (lambda: timm.create_model("pit_ti_224", depth=(1, 1, 1)), "27x27"),
        (clip, "4x4 (32 px)"),
    ],
)
def test_the_grid_of_absolute_positions(make, expected):
    assert list(found(make()).values()) == [expected]


def test_the_windows_of_relative_positions():
    assert set(found(swin(4)).values()) == {"windows of 4x4"}
    model = beit.Beit(img_size=32, patch_size=8, use_rel_pos_bias=True, use_abs_pos_emb=False, **TINY)
    assert set(found(model).values()) == {"windows of 4x4"}
    table = {"attn.rel_pos.relative_position_bias_table": TensorHeader((2, 13, 9), torch.float32)}
    assert [str(grid) for grid in grids_in(table).values()] == ["windows of 7x5"]


def test_transformers_and_torchvisions_names():
    transformers = pytest.importorskip("transformers")
    from torchvision.models import VisionTransformer

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    image = {"image_size": 32, "patch_size": 8}
    text = transformers.CLIPTextConfig(**sizes, vocab_size=20, max_position_embeddings=16)
    vision = transformers.CLIPVisionConfig(**sizes, **image)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    assert set(found(transformers.CLIPModel(config)).values()) == {"4x4 (32 px)"}  # of its images, not of its words
    assert len(found(transformers.CLIPModel(config))) == 1
    assert set(found(transformers.ViTModel(transformers.ViTConfig(**sizes, **image))).values()) == {"4x4 (32 px)"}
    words = transformers.BertConfig(**sizes, vocab_size=20, max_position_embeddings=16)
    assert found(transformers.BertModel(words)) == {}
    assert list(found(VisionTransformer(32, 8, 1, 2, 32, 32)).values()) == ["4x4 (32 px)"]


def test_a_model_tells_of_grids_that_are_oblong():
    model = vit((16, 48))
    assert found(model) == {}
    assert found(model, model) == {"pos_embed": "2x6 (16x48 px)"}
    assert only_grid(grids_in(TensorHeader.of_all(vit().state_dict())))[0] == "pos_embed"
    assert only_grid({}) is None


def test_positions_of_other_things_are_none():
    headers = {name: TensorHeader(shape, torch.float32) for name, shape in {"pos_embed": (1, 17, 8)}.items()}
    assert grids_in(headers) == {}  # nothing makes patches
    blocks = {"levels.0.pos_embed": (1, 16, 196, 8), "patch_embed.proj.weight": (8, 3, 4, 4)}
    assert grids_in({name: TensorHeader(shape, torch.float32) for name, shape in blocks.items()}) == {}
    deep = {f"{'a.' * 5000}pos_embed": TensorHeader((1, 17, 8), torch.float32)}
    assert grids_in(deep) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("small", "large", "filter_fn"),
    [
        (vit, lambda: vit(48), vision_transformer.checkpoint_filter_fn),
        (lambda: vit(48, reg_tokens=4), lambda: vit((16, 48), reg_tokens=4), vision_transformer.checkpoint_filter_fn),
        (lambda: vit(reg_tokens=4, no_embed_class=True), lambda: vit(48, reg_tokens=4, no_embed_class=True), None),
        (lambda: swin(4), lambda: swin(7), swin_transformer.checkpoint_filter_fn),
        (lambda: swin(7), lambda: swin(4), swin_transformer.checkpoint_filter_fn),
    ],
)
def test_what_is_read_is_what_timm_makes(small, large, filter_fn, dtype):
    model = large()
    state = {name: torch.randn_like(tensor).to(dtype) for name, tensor in small().state_dict().items()}
    made, names = resized(open_checkpoint(state), reference_of(model), model)
    expected = (filter_fn or vision_transformer.checkpoint_filter_fn)(state, model)
    assert names
    assert made.names == tuple(state)
    made = pickle.loads(pickle.dumps(made))
    for name in made.names:
        assert made.headers[name] == TensorHeader.of(made.read(name))
        assert torch.equal(made.read(name), expected[name])
        assert made.headers[name].shape == model.state_dict()[name].shape


def test_grids_of_images_beside_features():
    old, new = torch.randn(1, 4, 4, 8), torch.zeros(1, 6, 6, 8)
    patches = torch.zeros(8, 3, 8, 8)
    for layout in ((0, 1, 2, 3), (0, 3, 1, 2)):
        states = [{"pos_embed": tensor.permute(layout), "patch_embed.proj.weight": patches} for tensor in (old, new)]
        made, names = resized(open_checkpoint(states[0]), open_checkpoint(states[1]))
        expected = timm.layers.resample_abs_pos_embed_nhwc(old, [6, 6]).permute(layout)
        assert names == ("pos_embed",)
        assert torch.equal(made.read("pos_embed"), expected)


def test_the_rest_stays_and_what_a_model_computes_is_the_references():
    mask = {f"layers.0.{name}": torch.zeros(2) for name in ("attn_mask", "relative_position_index")}
    state, wanted = vit().state_dict(), vit(48).state_dict()
    state |= mask | {"width": torch.ones(3)}
    wanted |= {name: torch.ones(5) for name in mask} | {"width": torch.ones(4)}
    made, names = resized(open_checkpoint(state), open_checkpoint(wanted))
    assert set(names) == {"pos_embed", *mask}
    assert all(made.read(name).tolist() == [1.0] * 5 for name in mask)
    assert made.headers["width"].shape == (3,)
    same = open_checkpoint(state)
    assert resized(same, same) == (same, ())
    other = vit(48, embed_dim=64).state_dict()
    assert resized(open_checkpoint(vit().state_dict()), open_checkpoint(other))[1] == ()


def test_what_is_said_of_two_sizes():
    ours, theirs = (TensorHeader.of_all(vit(size).state_dict()) for size in (32, 48))
    said = sizes_told(["norm.weight", "pos_embed"], theirs, ours)
    assert "'pos_embed' has positions of 6x6 (48 px), expected 4x4 (32 px)" in said
    assert "resize_position_embedding=True, --resize-position-embedding" in said
    assert sizes_told(["norm.weight"], theirs, ours) == ""
    assert "as 'blocks.0.attn_mask' tells" in sizes_told(["blocks.0.attn_mask"], theirs, ours)


def test_another_width_is_not_another_image_size():
    ours, theirs = (
        TensorHeader.of_all(vit(size, embed_dim=width).state_dict()) for size, width in ((32, 32), (48, 64))
    )
    assert sizes_told(["pos_embed"], theirs, ours) == ""


def test_an_oblong_grid_is_told_by_the_model():
    model = vit((32, 48))
    ours, theirs = (TensorHeader.of_all(each.state_dict()) for each in (model, vit()))
    assert "expected 4x6 (32x48 px)" in sizes_told(["pos_embed"], theirs, ours, model)


def test_a_model_without_values_is_a_reference_too():
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    assert reference_of(model).headers["weight"].shape == (2, 2)
