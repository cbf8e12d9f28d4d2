"""Which tensors a rule treats as matrices."""

from collections.abc import Sequence

from lwptv_lightning.registry import matches


def is_matrix(shape: Sequence[int], name: str, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> bool:
    """Tell whether a tensor is 2-D and its name is among ``include`` and not among ``exclude``, which are globs.

    Example:
        >>> is_matrix((4, 4), "head.weight"), is_matrix((4, 4), "head.weight", exclude=("head.*",))
        (True, False)
    """
    return len(shape) == 2 and matches(name, include) and not matches(name, exclude)
