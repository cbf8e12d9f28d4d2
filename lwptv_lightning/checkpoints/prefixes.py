"""Prefixes that wrappers and attributes put before the names of tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable

from lwptv_lightning.checkpoints.checkpoint import Checkpoint, CheckpointError


def without_wrappers(checkpoint: Checkpoint) -> Checkpoint:
    """Take out of the names what `torch.compile` and DistributedDataParallel put into them.

    Args:
        checkpoint: Of a module that may have been wrapped, as a whole or in part.

    Returns:
        The checkpoint without ``_orig_mod`` in any name, and without a first ``module.`` where every name has it.

    Example:
        >>> import torch
        >>> from lwptv_lightning import open_checkpoint
        >>> without_wrappers(open_checkpoint({"module._orig_mod.w": torch.ones(1)}, prefix="")).names
        ('w',)
    """
    old_names = {re.sub(r"(^|(?<=\.))_orig_mod\.", "", name): name for name in checkpoint.names}
    while old_names and all(name.startswith("module.") for name in old_names):
        old_names = {name.removeprefix("module."): old for name, old in old_names.items()}
    return checkpoint if tuple(old_names) == checkpoint.names else checkpoint.renamed(old_names)


def count_prefixes(names: Iterable[str], known: Container[str]) -> Counter[str]:
    """Count, for each prefix that some names have, how many of them are known without it.

    Example:
        >>> count_prefixes(["net.a.w", "net.b", "w"], {"w", "b", "a.w"})
        Counter({'net.': 2, 'net.a.': 1})
    """
    covered: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in known:
                covered[".".join(parts[:cut]) + "."] += 1
    return covered


def align_prefix(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """Strip the prefix under which a checkpoint holds the tensors called ``names`` elsewhere.

    Args:
        checkpoint: Possibly a whole LightningModule, with the wanted model under one attribute.
        names: The model's own names.

    Returns:
        The checkpoint itself where some name is known already or no prefix leads to one, else the part under the
        prefix that covers most names.

    Raises:
        CheckpointError: Two prefixes cover equally many names.

    Example:
        >>> import torch
        >>> from lwptv_lightning import open_checkpoint
        >>> wrapped = open_checkpoint({"net.w": torch.ones(1), "net.b": torch.ones(1), "loss.k": torch.ones(1)})
        >>> align_prefix(wrapped, ["w", "b"]).names
        ('w', 'b')
    """
    wanted = set(names)
    if wanted.intersection(checkpoint.names):
        return checkpoint
    covered = count_prefixes(checkpoint.names, wanted)
    if not covered:
        return checkpoint
    (prefix, most), *others = covered.most_common()
    rivals = [other for other, count in others if count == most]
    if rivals:
        raise CheckpointError(
            f"{checkpoint.source}: the model's tensors stand under several prefixes, "
            f"{', '.join(map(repr, sorted([prefix, *rivals])))}; name one with prefix=..."
        )
    return checkpoint.without_prefix(prefix)
