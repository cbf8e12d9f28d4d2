"""Tied weights: one tensor under several names, which is merged once, whatever its names say."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, TensorHeader, compare_headers, match_names
from lwptv_lightning.functional import plain_name

_LEAST = 16
"""Elements of the smallest matrix in which equal values are taken for a tie, and how many are compared first."""
_SAMPLE = 4096
_HASHED_AT_ONCE = 1 << 20


def find_ties(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    names: Collection[str],
    model: nn.Module | None = None,
    *,
    strict: bool = True,
) -> dict[str, str]:
    """Return which names are further names of another's tensor, mapped to the first of them in the alphabet.

    A model tells by its own tensors. Without one, matrices are tied that were trained, have many different values, and
    are equal in the base and in each expert; files hold such copies, since safetensors knows no ties.

    Args:
        base: The base.
        experts: Task name to fine-tuned weights.
        names: The tensors to look among.
        model: The module that they belong to.
        strict: Whether the model's ties must hold in all checkpoints; else those that do not are none.

    Raises:
        CheckpointError: A checkpoint holds different values under names that are one tensor in the model.
    """
    groups = _groups(base, experts, names, model, strict=strict)
    if model is None:
        groups = [group for group in groups if _is_trained(base, experts, group[0])]
    return {name: min(group) for group in groups for name in group if name != min(group)}


def tied_to(
    excluded: Collection[str],
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    names: Collection[str],
    model: nn.Module | None = None,
) -> set[str]:
    """Return which of some names are further names of a tensor that is excluded; as in `find_ties`."""
    headers = base.headers
    shapes = {headers[name] for name in excluded}
    alike = [name for name in names if headers[name] in shapes]
    groups = _groups(base, experts, [*excluded, *alike], model, strict=False) if alike else []
    return {name for group in groups if not set(group).isdisjoint(excluded) for name in group} - set(excluded)


def require_not_apart(model: nn.Module, names: Iterable[str], excluded: Collection[str]) -> None:
    """Raise a `CheckpointError` where what is one tensor in a model is to be merged under one name and not another."""
    for group in tied_in(model, [*names, *excluded]):
        out = [name for name in group if name in excluded]
        if out and len(out) < len(group):
            rest = next(name for name in group if name not in excluded)
            raise CheckpointError(
                f"{out[0]!r} is excluded and {rest!r} is to be merged, but they are one tensor in the model, which "
                "ties them. Exclude both or neither."
            )


def _groups(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    names: Collection[str],
    model: nn.Module | None,
    *,
    strict: bool,
) -> list[list[str]]:
    """Return the groups of names that are tied in a model, or alike in the base, and equal in all checkpoints."""
    groups = _alike(base, names) if model is None else tied_in(model, names)
    for checkpoint in (base, *experts.values()):
        for group in groups if model is not None and strict else ():
            _require_equal(checkpoint, group)
        groups = [part for group in groups for part in _split(checkpoint, group)]
    return groups


def ties_of(base: Checkpoint, modules: Sequence[nn.Module]) -> list[list[str]]:
    """Return the groups of names that are one tensor: in a module with the base's names, or else by their values."""
    names = set(base.names)
    for module in modules:
        held = {plain_name(name) for name in module.state_dict()}
        if 2 * len(held & names) > len(held):
            return tied_in(module, held)
    return _alike(base, [name for name in base.names if not any(part.isdigit() for part in name.split("."))])


def untied(expert: Checkpoint, ties: Mapping[str, str]) -> set[str]:
    """Return the names among some ties under which an expert holds other values than under the first name."""
    return {name for name, first in ties.items() if not _split(expert, [first, name])}


def tied_in(model: nn.Module, names: Collection[str]) -> list[list[str]]:
    """Return the groups of names under which a model holds one tensor.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> model[1].weight = model[0].weight
        >>> tied_in(model, ["0.weight", "0.bias", "1.weight", "1.bias"])
        [['0.weight', '1.weight']]
    """
    groups: defaultdict[int, list[str]] = defaultdict(list)
    names = set(names)
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups[id(tensor)] += [each for each in dict.fromkeys((name, plain_name(name))) if each in names]
    return [group for group in groups.values() if len(group) > 1]


def complete(base: Checkpoint, expert: Checkpoint, modules: Iterable[nn.Module] = ()) -> Checkpoint:
    """Return an expert with the names of a base, where one of them holds a tied tensor under other names, or fewer.

    A name that only one of the two has is a tie where modules of these names say so; or where the one that has it holds
    the same values under a name of both.
    """
    found = compare_headers(base.headers, expert.headers)
    if not found.missing and not found.extra:
        return expert
    told = [group for module in modules for group in tied_in(module, {*base.names, *expert.names})]
    added = _told(told, found.missing, base, expert)
    rest = compare_headers(base.headers, {**expert.headers, **{name: base.headers[name] for name in added}})
    added |= _twins(base, rest.missing, found.matched)
    held = {*found.matched, *added.values()}
    needless = {name for name in found.extra for group in told if name in group and _repeats(expert, name, group, held)}
    needless |= _twins(expert, [name for name in found.extra if name not in needless], held).keys()
    if not added and not needless:
        return expert
    return expert.renamed({**{name: name for name in expert.names if name not in needless}, **added})


def without_repeated(
    difference: Checkpoint, bases: Iterable[Checkpoint], modules: Sequence[nn.Module] = ()
) -> Checkpoint:
    """Return a difference without the further names of tied weights that none of some bases has.

    So a run that knew a tied weight under all of its names fits the files that hold it once.
    """
    for base in bases:
        named = match_names(difference, base.headers)
        found = compare_headers(base.headers, named.headers)
        held = found.matched
        told = [group for module in modules for group in tied_in(module, {*base.names, *named.names})]
        extra = {name for name in found.extra for group in told if name in group and _repeats(named, name, group, held)}
        extra |= _twins(named, [name for name in found.extra if name not in extra], held).keys()
        if extra and extra == set(found.extra):
            return named.renamed({name: name for name in named.names if name not in extra})
    return difference


def _told(
    groups: Iterable[Collection[str]], names: Collection[str], base: Checkpoint, expert: Checkpoint
) -> dict[str, str]:
    """Return which of some names of a base are one tensor with a name of an expert's, by groups that modules tell."""
    return {
        name: other
        for group in groups
        for name in group
        for other in group
        if name in names and other in expert.headers and expert.headers[other].shape == base.headers[name].shape
    }


def _repeats(checkpoint: Checkpoint, name: str, group: Iterable[str], held: Collection[str]) -> bool:
    """Whether a tensor holds the values of another one of its group."""
    others = [other for other in group if other != name and other in held]
    return any(bool(_split(checkpoint, [other, name])) for other in others)


def _twins(checkpoint: Checkpoint, names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Return which of some names hold the values of another one, mapped to the first such one."""
    headers = checkpoint.headers
    # Where a name is missing, a vector of many values tells as well as a matrix: a bias tied to another one.
    wanted = [name for name in names if headers[name].numel >= _LEAST and _is_varied(checkpoint.read(name))]
    starts = {(headers[name], _start(checkpoint.read(name))) for name in wanted}
    shapes = {header for header, _ in starts}
    alike: defaultdict[tuple[TensorHeader, bytes], list[str]] = defaultdict(list)
    for other in others if wanted else ():
        if headers[other] in shapes and (headers[other], _start(checkpoint.read(other))) in starts:
            alike[headers[other], _digest(checkpoint.read(other))].append(other)
    found = {name: alike.get((headers[name], _digest(checkpoint.read(name)))) for name in wanted}
    return {name: twins[0] for name, twins in found.items() if twins}


def _require_equal(checkpoint: Checkpoint, group: Sequence[str]) -> None:
    first, *others = group
    for other in others:
        if not _split(checkpoint, [first, other]):
            raise CheckpointError(
                f"{checkpoint.source}: {first!r} and {other!r} hold different values, expected one tensor, as in the "
                "model, which ties them. Leave all of its names out with exclude=(...), or untie the model."
            )


def _alike(checkpoint: Checkpoint, names: Iterable[str]) -> list[list[str]]:
    """Return the groups of matrices with equal values, but for those that initialisation leaves alike."""
    groups: defaultdict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in names:
        header = checkpoint.headers[name]
        if _is_large(header):
            groups[header.shape, header.dtype].append(name)
    equal = (part for group in groups.values() if len(group) > 1 for part in _split(checkpoint, group))
    return [group for group in equal if _is_varied(checkpoint.read(group[0]))]


def _split(checkpoint: Checkpoint, names: Sequence[str]) -> list[list[str]]:
    """Return the groups of names with equal values, of tensors of one shape; those of one name only are left out.

    Two names of different values thus give no group, and two of equal ones give one.
    """
    found: list[list[str]] = []
    # By their beginnings first, so that few tensors are read as a whole.
    for candidates in _grouped(checkpoint, names, _start):
        found += _grouped(checkpoint, candidates, _digest)
    return found


def _grouped(checkpoint: Checkpoint, names: Iterable[str], key: Callable[[Tensor], bytes]) -> list[list[str]]:
    groups: defaultdict[bytes, list[str]] = defaultdict(list)
    for name in names:
        groups[key(checkpoint.read(name))].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _start(tensor: Tensor) -> bytes:
    return tensor.reshape(-1)[:_LEAST].contiguous().view(torch.uint8).numpy().tobytes()


def _digest(tensor: Tensor) -> bytes:
    """Return a hash of all values; zeros of either sign are equal."""
    values = hashlib.blake2b(digest_size=16)
    flat = tensor.reshape(-1)
    for start in range(0, len(flat), _HASHED_AT_ONCE):
        part = flat[start : start + _HASHED_AT_ONCE]
        part = part.cpu() + 0 if part.dtype.itemsize > 1 else part.cpu()  # float8 has no sum
        values.update(part.contiguous().view(torch.uint8).numpy().data)
    return values.digest()


def _is_large(header: TensorHeader) -> bool:
    return len(header.shape) > 1 and header.numel >= _LEAST


def _is_varied(values: Tensor) -> bool:
    """Whether a matrix has many different values, unlike zeros or an identity."""
    sample = values.reshape(-1)[:: -(-values.numel() // _SAMPLE)].float()
    # Eight bits have few values at all.
    return 2 * len(torch.unique(sample)) >= min(len(sample), 1 << (8 * values.dtype.itemsize - 2))


def _is_trained(base: Checkpoint, experts: Mapping[str, Checkpoint], name: str) -> bool:
    values = base.read(name)
    return any(not _equal(expert.read(name), values) for expert in experts.values())


def _equal(values: Tensor, others: Tensor) -> bool:
    # torch compares neither floats of eight bits nor tensors of two dtypes.
    if values.dtype == others.dtype and values.dtype.itemsize > 1:
        return torch.equal(values, others)
    return torch.equal(values.double(), others.double())
