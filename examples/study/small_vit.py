"""A vision transformer as small and as quick as the zoo's network."""

from functools import partial

from timm.layers import HybridEmbed, LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn

WIDTH = 128


def create_vit() -> nn.Module:
    """Return a ViT of 0.9 million parameters with random weights, from images (B, 1, 32, 32) to features (B, 128).

    It sees 4 x 4 patches through three convolutions, without which so few images would not teach it. As the zoo's
    network it normalises with LayerNorm alone, and drops nothing out.
    """
    stem = ConvStem(1, depth=3, channels=(24, 48, WIDTH), kernel_size=3, norm_layer=LayerNorm2d, act_layer=nn.GELU)
    return VisionTransformer(
        img_size=32,
        patch_size=1,  # of what the stem returns
        in_chans=1,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        embed_dim=WIDTH,
        depth=4,
        num_heads=4,
        class_token=False,
        global_pool="avg",
        num_classes=0,
    )
