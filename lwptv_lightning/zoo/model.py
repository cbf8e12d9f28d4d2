"""The zoo's network, which ends in features, and its heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear, normalize


def create_model() -> nn.Module:
    """Return the network of the zoo with random weights.

    A ConvNeXt of timm, reduced to 1.1 million parameters. It normalises with LayerNorm, so that no statistics of
    a training domain hide in buffers: what a model knows is in the parameters that are merged.

    Returns:
        A module from images ``(B, 1, 32, 32)`` to features ``(B, 192)``.

    Example:
        >>> import torch
        >>> create_model()(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 192])
    """
    from timm.models.convnext import ConvNeXt  # here, because importing timm takes longer than all else here

    # A patch of 2 leaves 16 x 16 positions: single strokes are still apart. A LayerScale near zero, timm's default,
    # pays in long trainings only.
    model: nn.Module = ConvNeXt(
        in_chans=1, num_classes=0, patch_size=2, depths=(2, 2, 4, 1), dims=(32, 64, 128, 192), ls_init_value=None
    )
    return model


class PrototypeHead(nn.Module):
    """Logits that are scaled cosines between features and one prototype per class.

    ``logits[b, c] = scale * cos(features[b], prototypes[c])``

    Args:
        prototypes: ``(C, D)``, one direction per class; their lengths do not matter.
        scale: ``()``, the logit of a perfect match, positive.

    Example:
        >>> import torch
        >>> head = PrototypeHead(torch.eye(2), torch.tensor(5.0))
        >>> head(torch.tensor([[3.0, 0.0]])).tolist()
        [[5.0, 0.0]]
    """

    def __init__(self, prototypes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(prototypes)
        self.scale = nn.Parameter(scale)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, D)`` to logits ``(B, C)``."""
        return self.scale * linear(normalize(features, dim=-1), normalize(self.prototypes, dim=-1))
