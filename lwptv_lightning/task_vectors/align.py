"""Open a base and what was fine-tuned from it, bring them to the same tensor names, and tell whether they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from torch import nn

from lwptv_lightning.checkpoints import (
    Checkpoint,
    CheckpointError,
    CheckpointSource,
    HeaderComparison,
    ModelConfig,
    TensorHeader,
    add_difference,
    compare_headers,
    expand_adapter,
    is_adapter,
    is_task_vector,
    match_names,
    named_as,
    open_checkpoint,
    reference_of,
    require_readable_form,
    sizes_told,
    skeleton_of,
    some_of,
    without_wrappers,
)
from lwptv_lightning.functional import plain_module
from lwptv_lightning.registry import matcher, nearest, require_kind, require_matches, require_texts, shown
from lwptv_lightning.task_vectors.classifiers import (
    classifier_paths,
    is_classifiers,
    output_paths,
    own_classifiers,
    stated_classifiers,
)
from lwptv_lightning.task_vectors.integers import telling_forms, telling_quantized
from lwptv_lightning.task_vectors.sizes import ImageSizes
from lwptv_lightning.task_vectors.ties import complete, tied_to, ties_of, without_repeated


@dataclass(frozen=True)
class Aligned:
    """A base and what was fine-tuned from it, under the base's names.

    Attributes:
        base: The base.
        experts: Task name to fine-tuned weights, of the tasks that could be brought to the base's names.
        opened: Task name to checkpoint as its file has it, of the tasks that could be opened.
        failures: Task name to error, of the tasks that are not among ``experts``.
        classifiers: Module paths of the model's classifiers that differ in shape.
        ignored: Globs of the tensors that may differ: the excluded ones, by all their names, and these classifiers.
        resized: Tensors that some checkpoint has at another image size, and that were brought to the wanted one.
    """

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    opened: Mapping[str, Checkpoint]
    failures: Mapping[str, Exception]
    classifiers: tuple[str, ...]
    ignored: tuple[str, ...]
    resized: tuple[str, ...] = ()

    def compare(self, task: str) -> HeaderComparison:
        """Compare the headers of one of ``experts`` with the base's."""
        return compare_headers(self.base.headers, self.experts[task].headers, self.ignored)

    def require_unchanged(self) -> None:
        """Raise a `CheckpointError` where a file of base or ``experts`` was changed since it was opened."""
        for checkpoint in (self.base, *self.experts.values()):
            checkpoint.require_unchanged()

    def shared(self) -> tuple[list[str], list[str]]:
        """Return the tensors of the base that are to be merged: the floating ones, and the others.

        Raises:
            CheckpointError: None is floating.
        """
        kinds: dict[bool, list[str]] = {True: [], False: []}
        is_ignored = matcher(self.ignored)
        for name, header in self.base.headers.items():
            if not is_ignored(name):
                kinds[header.dtype.is_floating_point].append(name)
        if not kinds[True]:
            raise CheckpointError(f"{self.base.source}: no floating tensor is left to merge.")
        return kinds[True], kinds[False]


def align(
    base: CheckpointSource,
    tasks: Mapping[str, CheckpointSource],
    *,
    exclude: Sequence[str] = (),
    model: nn.Module | None = None,
    prefix: str | None = None,
    ema: bool | None = None,
    resize_position_embedding: bool = False,
    strict: bool = True,
) -> Aligned:
    """Open a base and its tasks and bring all to one set of names: the model's, or the base's without one.

    The arguments are those of `lwptv_lightning.TaskVectors.open`; only where ``strict``, an error of a task is raised.
    """
    if not isinstance(tasks, Mapping):
        raise TypeError(f"tasks must map task names to checkpoints, not be a {type(tasks).__name__}.")
    if not tasks:
        raise ValueError("tasks is empty: expected at least one fine-tuned checkpoint.")
    exclude = require_texts("exclude", exclude, "a sequence of globs such as ('head.*',)")
    require_kind("model", model, nn.Module | None, "a module")
    require_kind("prefix", prefix, str | None, "a text")
    require_kind("ema", ema, bool | None, "true, false or None")
    require_kind("resize_position_embedding", resize_position_embedding, bool, "true or false")
    raw_base = aligned_base = _open_unprefixed(base, prefix)
    modules = [each for each in (base, model) if isinstance(each, nn.Module)]
    _require_whole(raw_base)
    home = model if model is not None else base
    own_model = plain_module(home) if isinstance(home, nn.Module) else None
    sizes = ImageSizes(resize_position_embedding, own_model, exclude)
    if model is not None:
        model = plain_module(model)
        reference = reference_of(model)
        with telling_quantized(raw_base):
            aligned_base = match_names(sizes.converted(raw_base, reference.headers), reference.headers, model)
            aligned_base = sizes.fitted(aligned_base, reference).of_model(ModelConfig.of(model))
            sizes.has_changed_base = bool(sizes.changed)
            _require_model(aligned_base, reference.headers, model, exclude)
    # A task vector may be of another classifier than the base's.
    apart = (*exclude, *(f"{path}.*" for path in output_paths(model)))
    opened: dict[str, Checkpoint] = {}
    experts: dict[str, Checkpoint] = {}
    failures: dict[str, Exception] = {}
    owned = dict.fromkeys(aligned_base.names)
    if len(named := {str(task): source for task, source in tasks.items()}) < len(tasks):
        raise ValueError(f"tasks have the same name as text: {', '.join(map(shown, tasks))}.")
    for task, source in named.items():
        try:
            opened[task] = _open_unprefixed(source, prefix, ema)
            with telling_forms(raw_base, opened[task], exclude, named=strict):
                aligned = _align_expert(opened[task], raw_base, aligned_base, model, apart, modules, sizes)
            own = [source] if isinstance(source, nn.Module) else []
            experts[task] = complete(aligned_base, aligned, [*modules, *own])
            owned = {name: None for name in owned if name in aligned.headers}
        except (ValueError, OSError, TypeError) as error:
            if strict and (isinstance(source, str | Path) or not isinstance(error, CheckpointError | TypeError)):
                raise
            if strict:  # what is in memory has no name of its own
                raise type(error)(f"task {task!r}: {error}") from error
            failures[task] = error
    stored = (each.stored_name(name) for each in (raw_base, *opened.values()) for name in each.names[:1])
    if prefix and not any(prefix in name for name in stored):
        raise CheckpointError(
            f"no tensor of any checkpoint starts with prefix={shown(prefix)}. {some_of(raw_base.names)}"
        )
    every_name = dict.fromkeys(
        name for each in (aligned_base, *opened.values(), *experts.values()) for name in each.names
    )
    require_matches("exclude pattern", exclude, every_name)
    others = [(expert.headers, expert.foreign) for expert in experts.values()]
    if model is None:
        classifiers = stated_classifiers(aligned_base, others, exclude)
    else:
        classifiers = own_classifiers(model, aligned_base.headers, others, exclude)
    ignored = (*exclude, *(f"{path}.*" for path in classifiers))
    # A tied weight is excluded by any of its names; not by one that a task has without it, as an encoder alone does.
    is_ignored = matcher(ignored)
    out, rest = ([name for name in owned if is_ignored(name) == is_out] for is_out in (True, False))
    ignored += tuple(map(escape, sorted(tied_to(out, aligned_base, experts, rest, model))))
    return Aligned(aligned_base, experts, opened, failures, classifiers, ignored, tuple(sorted(sizes.changed)))


def require_fit(task: str, expert: Checkpoint, base: Mapping[str, TensorHeader], ignored: Sequence[str] = ()) -> None:
    """Raise a `CheckpointError` unless a task has the base's tensors and no others, but for those of some globs."""
    found = compare_headers(base, expert.headers, ignored)
    label = f"task {task!r} ({expert.source})"
    hint = " Tensors that are not to be merged go into exclude=(...)."
    if missing := sorted(found.missing):
        near = nearest(missing[0], found.extra)
        raise CheckpointError(f"{label} misses tensors that the base has: {some_of(missing)}{near}{hint}")
    if found.extra:
        raise CheckpointError(f"{label} has tensors that the base has not: {some_of(sorted(found.extra))}{hint}")
    for name in sorted(found.reshaped + found.other_kind):
        ours, theirs, tensor = base[name], expert.headers[name], f"{label}: {name!r}"
        if ours.shape != theirs.shape:
            told = sizes_told(found.reshaped, expert.headers, base)
            if all(is_classifiers(each, expert.headers[each], base[each]) for each in found.reshaped):
                told = " A classifier of another size becomes the task's head where model=... tells the architecture."
            raise CheckpointError(
                f"{tensor} has shape {theirs.shape}, expected {ours.shape} as in the base.{told}{hint}"
            )
        raise CheckpointError(f"{tensor} is {theirs.dtype}, expected {ours.dtype} as in the base.")


def _open_unprefixed(source: CheckpointSource, prefix: str | None = None, ema: bool | None = None) -> Checkpoint:
    """Open a checkpoint and strip ``prefix`` where it carries one: plain files may stand beside Lightning's."""
    if prefix is None:
        return open_checkpoint(source, ema=ema)
    checkpoint = open_checkpoint(source, prefix="", ema=ema)
    for named in (checkpoint, without_wrappers(checkpoint)):
        if any(name.startswith(prefix) for name in named.names):
            return without_wrappers(named.without_prefix(prefix))
    return without_wrappers(checkpoint)


def _align_expert(
    expert: Checkpoint,
    raw_base: Checkpoint,
    base: Checkpoint,
    model: nn.Module | None,
    ignored: Sequence[str],
    modules: Sequence[nn.Module],
    sizes: ImageSizes,
) -> Checkpoint:
    """Bring whole weights, an adapter or a task vector to the names of a base, which its file may name otherwise."""
    if is_adapter(expert):
        difference, replaced = expand_adapter(expert, (base, raw_base), modules, ties_of)
    elif is_task_vector(expert):
        expert = without_repeated(expert, (base, raw_base), modules)
        difference, replaced = expert, None
    else:
        found = expert if model is None else sizes.converted(expert, base.headers)
        # A base that is a module of transformers tells what its library's files are named.
        naming = [each for each in modules if model is None and hasattr(each, "base_model_prefix")]
        named = match_names(found, base.headers, model or next(iter(naming), None))
        if model is None and not naming:
            named = _as_the_bases_file(named, base)
        return sizes.fitted(named, base)
    # A task vector is of all weights, and from those at their own size.
    home = raw_base if difference is expert and sizes.has_changed_base else base
    with telling_quantized(raw_base):
        made = add_difference(difference, raw_base, home, model, replaced, ignored)
    if home is not base:
        made = sizes.fitted(match_names(made, base.headers, model), base)
    made.is_sum = difference is expert
    return made


def _as_the_bases_file(expert: Checkpoint, base: Checkpoint) -> Checkpoint:
    """Return an expert under the base's names where the files are of different versions of its library."""
    lacking = base.headers.keys() - expert.headers.keys()
    if not lacking or not expert.headers.keys() - base.headers.keys():
        return expert
    for model in filter(None, map(skeleton_of, (base, expert))):
        found = named_as(expert.names, base.names, model)
        if len(found) > len(base.headers) - len(lacking):
            return expert.renamed({found.get(name, name): name for name in expert.names})
    return expert


def _require_whole(base: Checkpoint) -> None:
    """Raise a `CheckpointError` where a difference is given in the place of the base."""
    if is_adapter(base):
        require_readable_form(base)
    adapter = "a LoRA adapter" if any(".lora_" in name for name in base.names) else "an adapter"
    for is_difference, what in ((is_task_vector, "a task vector"), (is_adapter, adapter)):
        if is_difference(base):
            raise CheckpointError(
                f"{base.source}: this is {what}, and the base must be whole weights; give those that it was made from."
            )


def _require_model(
    base: Checkpoint, wanted: Mapping[str, TensorHeader], model: nn.Module, exclude: Sequence[str]
) -> None:
    """Raise a `CheckpointError` where a base is of another architecture than the model, but for its classifier."""
    label = f"{base.source} does not fit the model, {type(model).__name__}"
    if wanted and base.headers and not wanted.keys() & base.headers.keys():
        raise CheckpointError(f"{label}: none of its tensors is the model's, which has {some_of(wanted)}")
    own = classifier_paths(model) or own_classifiers(model, wanted, [(base.headers, ())], exclude)
    apart = (*exclude, *(f"{path}.*" for path in own))
    reshaped = compare_headers(wanted, base.headers, apart).reshaped
    for name in reshaped:
        told = sizes_told(reshaped, base.headers, wanted, model)
        raise CheckpointError(
            f"{label}: {name!r} has shape {base.headers[name].shape}, expected {wanted[name].shape}.{told}"
        )
