"""Tensors whose shape is the image size's: position embeddings, which timm's functions resample, and buffers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from threading import Lock
from typing import Any

from torch import Tensor, nn

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, FunctionReader, TensorHeader
from lwptv_lightning.files import InputFile
from lwptv_lightning.functional import plain_module, plain_state

_ABSOLUTE = re.compile(
    r"(?P<root>(?:.*\.)?)(?:pos_embed|pos_embedding|positional_embedding|position_embeddings?(?:\.weight)?)"
)
_PATCHES = re.compile(r"(?:embeddings\.)?(?:patch_embed\w*(?:\.proj|\.projection)?|conv1|conv_proj)\.weight")
_SOME_PATCHES = re.compile(r"(?:embeddings\.)?patch_embed.*|proj\.weight")
_MOST_CHANNELS = 16
"""Of images; features have more."""
_DEEPEST = 16
"""How many modules may lie in one another around a position embedding."""
_TABLE = "relative_position_bias_table"
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "position_ids")
"""What models compute of the image size, and some keep in their state."""
_TOKENS = (
    ("cls_token", "class_token", "class_embedding", "cls_embed"),
    ("dist_token", "distillation_token"),
    ("reg_token", "register_tokens", "storage_tokens"),
)
"""Tokens that are no patches, and may have positions too."""
_BESIDE_TABLE = (0, 3)
"""Entries of a table for a token that is no patch: to it, from it and to itself."""


@dataclass(frozen=True)
class Grid:
    """What a tensor has its positions on.

    Attributes:
        height: Patches, or for a table of a window's.
        width: Likewise.
        layout: What its dimensions are: ``"tokens"``, ``"nhwc"``, ``"nchw"``, or of a table ``"flat"`` or ``"square"``.
        extra: How many entries are of no patch: the first tokens, or the last entries of a table.
        patch: A patch's width in pixels, where it is known.
    """

    height: int
    width: int
    layout: str
    extra: int = 0
    patch: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}"
        if self.layout in ("flat", "square"):
            return f"windows of {size}"
        if self.patch is None:
            return size
        is_square = self.height == self.width
        sides = (self.height * self.patch, self.width * self.patch)
        return f"{size} ({sides[0] if is_square else f'{sides[0]}x{sides[1]}'} px)"


def grids_in(headers: Mapping[str, TensorHeader], model: nn.Module | None = None) -> dict[str, Grid]:
    """Return the grids of the position embeddings of images among some tensors; a timm model tells oblong ones.

    Example:
        >>> names = {"pos_embed": (1, 197, 8), "cls_token": (1, 1, 8), "patch_embed.proj.weight": (8, 3, 16, 16)}
        >>> import torch
        >>> found = grids_in({name: TensorHeader(shape, torch.float32) for name, shape in names.items()})
        >>> {name: str(grid) for name, grid in found.items()}
        {'pos_embed': '14x14 (224 px)'}
    """
    found = {}
    for name, header in headers.items():
        grid = None if model is None else _told_grid(name, header.shape, model)
        if grid is None:
            grid = _table_grid(header.shape) if name.endswith(_TABLE) else _absolute_grid(name, headers)
        if grid is not None:
            found[name] = grid
    return found


def sizes_told(
    names: Iterable[str],
    theirs: Mapping[str, TensorHeader],
    ours: Mapping[str, TensorHeader],
    model: nn.Module | None = None,
) -> str:
    """Say of the first of some tensors whose shape is the image size's which sizes two checkpoints have; else nothing.

    Args:
        names: Those of other shapes.
        theirs: Headers of the checkpoint that is told of.
        ours: Those of what it should be like.
        model: The module of the latter, if any.
    """
    names = list(names)
    their_grids, our_grids = grids_in(theirs), grids_in(ours, model)
    for name in names:
        old, new = their_grids.get(name), our_grids.get(name)
        if old is None or new is None or old.size == new.size:
            continue
        if _are_of_one_kind(old, new, theirs[name].shape, ours[name].shape):
            return f" The {grids_told(name, old, new)}"
    if buffer := next((name for name in names if name.endswith(_COMPUTED)), None):
        return f" The image sizes differ, as {buffer!r} tells. {_ADVICE}"
    return ""


_ADVICE = "They are resampled where that is asked for: resize_position_embedding=True, --resize-position-embedding."


def grids_told(name: str, theirs: Grid, ours: Grid) -> str:
    """Say that two grids differ, and what to do about it."""
    return f"image sizes differ: {name!r} has positions of {theirs}, expected {ours}. {_ADVICE}"


def only_grid(grids: Mapping[str, Grid]) -> tuple[str, Grid] | None:
    """Return the one grid of absolute positions, by its name; None where there is none, or are several."""
    found = [(name, grid) for name, grid in grids.items() if grid.layout not in ("flat", "square")]
    return found[0] if len(found) == 1 else None


def reference_of(model: nn.Module) -> Checkpoint:
    """Return a module's tensors as what checkpoints are resized to: all headers, and the values of what it computes."""
    state = plain_state(model)
    computed = {name: tensor.clone() for name, tensor in state.items() if name.endswith(_COMPUTED)}
    reader = FunctionReader(computed.__getitem__)
    return Checkpoint(type(plain_module(model)).__name__, TensorHeader.of_all(state), reader)


def resized(
    checkpoint: Checkpoint, reference: Checkpoint, model: nn.Module | None = None
) -> tuple[Checkpoint, tuple[str, ...]]:
    """Return a checkpoint at the image size of a reference, and the names of what was resampled or replaced for it.

    Position embeddings are resampled by timm's own functions when they are read, as ``timm.create_model`` does; what a
    model computes itself is the reference's. Other tensors of other shapes stay as they are.

    Args:
        checkpoint: Under the reference's names.
        reference: Whose shapes are wanted.
        model: The module of the reference, if any.
    """
    ours, theirs = grids_in(reference.headers, model), grids_in(checkpoint.headers)
    changes: dict[str, Callable[[], Tensor]] = {}
    for name, header in checkpoint.headers.items():
        shape = reference.headers[name].shape if name in reference.headers else header.shape
        if shape == header.shape:
            continue
        if name.endswith(_COMPUTED):
            changes[name] = partial(reference.read, name)
        elif name in ours and name in theirs and _are_alike(theirs[name], ours[name], header.shape, shape):
            changes[name] = partial(_read_resampled, checkpoint, name, theirs[name], ours[name], shape)
    if not changes:
        return checkpoint, ()
    headers = {name: TensorHeader(reference.headers[name].shape, checkpoint.headers[name].dtype) for name in changes}
    made = checkpoint.with_tensors({**checkpoint.headers, **headers}, _ResizedReader(checkpoint, changes))
    return made, tuple(changes)


class _ResizedReader:
    """Reads some tensors by functions of their own, once, as they are small and take long; others from a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, changes: Mapping[str, Callable[[], Tensor]]) -> None:
        self._checkpoint = checkpoint
        self._changes = changes
        self._made: dict[str, Tensor] = {}

    @property
    def inputs(self) -> tuple[InputFile, ...]:
        return self._checkpoint.every_input

    def read(self, name: str) -> Tensor:
        if name not in self._changes:
            return self._checkpoint.read(name)
        if name not in self._made:
            self._made[name] = self._changes[name]()
        return self._made[name]

    def read_for_difference(self, name: str) -> tuple[Tensor, bool]:
        return (self.read(name), False) if name in self._changes else self._checkpoint.read_for_difference(name)

    def __getstate__(self) -> dict[str, Any]:
        return {"_checkpoint": self._checkpoint, "_changes": self._changes, "_made": {}}


def _read_resampled(checkpoint: Checkpoint, name: str, old: Grid, new: Grid, shape: tuple[int, ...]) -> Tensor:
    from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc, resize_rel_pos_bias_table

    made: Tensor
    tensor, size = checkpoint.read(name), [new.height, new.width]
    if new.layout in ("flat", "square"):
        with _one_at_a_time, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of how timm computes
            made = resize_rel_pos_bias_table(tensor, (new.height, new.width), shape)
    elif new.layout == "tokens":
        tokens = tensor.reshape(1, *tensor.shape[-2:])
        made = resample_abs_pos_embed(tokens, size, [old.height, old.width], num_prefix_tokens=new.extra)
    elif new.layout == "nhwc":
        made = resample_abs_pos_embed_nhwc(tensor, size)
    else:
        made = resample_abs_pos_embed_nhwc(tensor.permute(0, 2, 3, 1), size).permute(0, 3, 1, 2)
    return made.reshape(shape).contiguous()


_one_at_a_time = Lock()
"""Of several threads that leave the same warnings out, one would leave out all that follow."""


def _are_of_one_kind(old: Grid, new: Grid, old_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether two tensors have the same dimensions and channels, whatever their grids are."""
    channels = {"tokens": -1, "nhwc": -1, "nchw": 1, "flat": -1, "square": 0}[new.layout]
    return old.layout == new.layout and len(old_shape) == len(shape) and old_shape[channels] == shape[channels]


def _are_alike(old: Grid, new: Grid, old_shape: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether two tensors differ in their grids alone."""
    return _are_of_one_kind(old, new, old_shape, shape) and old.extra == new.extra and old.size != new.size


def _table_grid(shape: tuple[int, ...]) -> Grid | None:
    if len(shape) == 3:
        height, width = shape[1:]
        return Grid((height + 1) // 2, (width + 1) // 2, "square") if height % 2 and width % 2 else None
    for extra in _BESIDE_TABLE if len(shape) == 2 else ():
        side = isqrt(max(shape[0] - extra, 0))
        if side % 2 and side**2 + extra == shape[0]:
            return Grid((side + 1) // 2, (side + 1) // 2, "flat", extra)
    return None


def _absolute_grid(name: str, headers: Mapping[str, TensorHeader]) -> Grid | None:
    shape, matched = headers[name].shape, _ABSOLUTE.fullmatch(name)
    if matched is None or len(shape) not in (2, 3, 4) or (len(shape) > 2 and shape[0] != 1):
        return None
    place = _place_of_patches(matched["root"], headers)
    if place is None:  # positions of something else, such as of words
        return None
    root, patch = place
    if len(shape) == 4 and root != matched["root"]:  # of blocks of patches
        return None
    if len(shape) == 4:
        is_last = shape[2] == shape[3] != shape[1]
        return Grid(*(shape[2:] if is_last else shape[1:3]), "nchw" if is_last else "nhwc", patch=patch)
    for extra in (1,) if "attnpool." in name else _extra_tokens(root, headers):
        side = isqrt(max(shape[-2] - extra, 0))
        if side and side**2 + extra == shape[-2]:
            return Grid(side, side, "tokens", extra, patch)
    return None


def _place_of_patches(root: str, headers: Mapping[str, TensorHeader]) -> tuple[str, int | None] | None:
    """Return the innermost module around a position embedding that makes patches of images, and their width."""
    parts = root.split(".")[:-1]
    for depth in range(len(parts), -1, -1) if len(parts) <= _DEEPEST else ():
        start = "".join(f"{part}." for part in parts[:depth])
        inside = {name.removeprefix(start): header.shape for name, header in headers.items() if name.startswith(start)}
        makers = [shape for name, shape in inside.items() if len(shape) == 4 and _PATCHES.fullmatch(name)]
        if makers:  # patches that overlap, or are made of features, are no part of the image by their width
            channels, width = makers[0][1], makers[0][-1]
            return start, width if channels <= _MOST_CHANNELS and width % 2 == 0 else None
        if any(map(_SOME_PATCHES.fullmatch, inside)):
            return start, None
    return None


def _extra_tokens(root: str, headers: Mapping[str, TensorHeader]) -> list[int]:
    """Return how many tokens that are no patches may have positions, most likely first."""
    counts = []
    for names in _TOKENS:
        places = (f"{root}{inner}{name}" for inner in ("", "embeddings.") for name in names)
        shape = next((headers[place].shape for place in places if place in headers), None)
        counts.append(0 if shape is None else shape[-2] if len(shape) > 1 else 1)
    return list(dict.fromkeys((sum(counts), sum(counts[:2]), 0)))


def _told_grid(name: str, shape: tuple[int, ...], model: nn.Module) -> Grid | None:
    """Return the grid that a timm model says that it has, which may be an oblong one."""
    try:
        module = model.get_submodule(name.rpartition(".")[0])
    except AttributeError:
        return None
    is_table = name.endswith(_TABLE)
    home, attribute = (module, "window_size") if is_table else (getattr(module, "patch_embed", None), "grid_size")
    told = getattr(home, attribute, None)
    if not isinstance(told, tuple | list) or len(told) != 2 or not (is_table or _ABSOLUTE.fullmatch(name)):
        return None
    height, width = map(int, told)
    if is_table and len(shape) == 2:
        return Grid(height, width, "flat", shape[0] - (2 * height - 1) * (2 * width - 1))
    if not is_table and len(shape) == 3 and (extra := shape[1] - height * width) >= 0:
        sides = getattr(home, "patch_size", None)
        patch = sides[0] if isinstance(sides, tuple) and len(set(sides)) == 1 else None
        return Grid(height, width, "tokens", extra, patch)
    return None
