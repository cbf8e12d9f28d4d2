"""A merge composed by hand, step by step in the stated order, each step by what does nothing else."""

import warnings

import torch

from lwptv_lightning import LiNeS, MergeRecipe, TaskVectors, merge, plan_pruning
from lwptv_lightning.engine import anew
from lwptv_lightning.functional import decompose
from lwptv_lightning.layers import layers_from_names


def composed(vectors, recipe, data=None):
    """Return the merged model of a recipe in float32."""
    names, tasks = vectors.names, vectors.tasks
    base = {name: vectors.base(name) for name in names}
    plain = {name: vectors.stack(name) for name in names}
    kept = _kept(vectors, recipe)
    seen = {name: _reweighted(recipe.reweight, name, stack, base[name]) for name, stack in plain.items()}
    if recipe.prune_on == "parts":
        weights = {name: kept[name] * _coefficients(recipe, tasks) for name in names}
        parts = torch_by_name([_part(seen, tasks, task, recipe, data) for task in tasks])
        whole = {name: recipe.effective_scale * own.double().sum(0) for name, own in parts.items()}
        made = {
            name: sum(
                weight * _calibrated(recipe.calibrate, name, whole[name], seen[name], recipe.effective_scale * part)
                for weight, part in zip(weights[name].tolist(), parts[name].double(), strict=True)
            )
            for name in names
        }
        seen = {name: seen[name] * _as_column(weights[name] != 0, seen[name]) for name in names}
    else:
        seen = {name: seen[name] * _as_column(kept[name], seen[name]) for name in names}
        if recipe.elements is not None:
            seen = torch_by_name([_thinned(seen, index, recipe.elements) for index in range(len(tasks))])
        merged = _merged(seen, tasks, MergeRecipe(recipe.rule, 1.0, **_inside(recipe)), data)
        scaled = {name: recipe.effective_scale * merged[name].double() for name in names}
        made = {name: _calibrated(recipe.calibrate, name, scaled[name], seen[name], scaled[name]) for name in names}
    factors = _factors(recipe, names, seen, made)
    return {name: (base[name] + factors[name] * made[name]).to(base[name].dtype) for name in names}


def torch_by_name(states):
    """Stack state dicts by name."""
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def _kept(vectors, recipe):
    """Which tasks are kept of each tensor; layers are chosen on the plain task vectors."""
    if not recipe.prunes_layers:
        return {name: torch.ones(len(vectors)) for name in vectors.names}
    mask = plan_pruning(vectors, recipe.replace(reweight=None, calibrate=None, coefficients=None)).mask
    layers = layers_from_names(vectors.names, recipe.granularity)
    place = {layer: index for index, layer in enumerate(mask.layers)}
    return {name: mask.kept[:, place[layer.name]].float() for layer in layers for name in layer.tensors}


def _as_column(weights, stack):
    return weights.reshape(-1, *[1] * (stack.dim() - 1))


def _coefficients(recipe, tasks):
    if recipe.coefficients is None:
        return 1
    return torch.tensor([recipe.coefficients[task]["*"] for task in tasks])


def _reweighted(reweighting, name, stack, base):
    if reweighting is None or not reweighting.treats(name, base.shape):
        return stack
    return torch.stack([reweighting.reweighted(delta, base, anew) for delta in stack])


def _inside(recipe):
    """The recipe's subspace, where recipes have such a field."""
    subspace = getattr(recipe, "subspace", None)
    return {} if subspace is None else {"subspace": subspace}


def _merged(seen, tasks, recipe, data=None):
    """Merge task vectors over a base of zeros."""
    states = {task: {name: stack[index] for name, stack in seen.items()} for index, task in enumerate(tasks)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = TaskVectors.open({name: torch.zeros_like(stack[0]) for name, stack in seen.items()}, states)
        return merge(vectors, recipe, data=data)


def _part(seen, tasks, task, recipe, data):
    """What the rule makes of one task."""
    alone = {other: {"*": float(other == task)} for other in tasks}
    parts = MergeRecipe(recipe.rule, 1.0, prune_on="parts", coefficients=alone, **_inside(recipe))
    return _merged(seen, tasks, parts, data)


def _thinned(seen, index, elements):
    """One task vector without its smallest elements in each layer."""
    alone = {name: stack[index : index + 1] for name, stack in seen.items()}
    return _merged(alone, ["alone"], MergeRecipe("task_arithmetic", 1.0, elements=elements))


def _calibrated(calibration, name, whole, seen, own):
    """Multiply ``own`` from the left with what calibrates ``whole``, by blocks of rows."""
    if calibration is None or not calibration.treats(name, whole.shape):
        return own
    matrix, blocks = whole.flatten(1), calibration.row_blocks(name, whole.shape)
    made = []
    for rows in torch.arange(len(matrix)).chunk(blocks):
        triplets = decompose(matrix[rows])
        gains = calibration.gains(triplets, seen.flatten(2)[:, rows])
        made.append(triplets.left @ (gains[:, None] * (triplets.left.mT @ own.flatten(1)[rows])))
    return calibration.scale * torch.cat(made).reshape(whole.shape)


def _factors(recipe, names, seen, made):
    """The coefficient of each tensor by layer."""
    scaling = recipe.layer_scaling
    if scaling is None:
        return dict.fromkeys(names, 1.0)
    if not isinstance(scaling, LiNeS):
        layers = layers_from_names(names, recipe.granularity)
        return {name: scaling.get(layer.name, 1.0) for layer in layers for name in layer.tensors}
    alpha = scaling.alpha
    if alpha is None:
        # The published quotient is of what a scale would be multiplied with, or of what was calibrated.
        scale = 1.0 if recipe.calibrate is not None else abs(recipe.effective_scale)
        summed = sum(float(seen[name].double().sum(0).abs().sum()) for name in names)
        combined = sum(float(made[name].double().abs().sum()) / scale for name in names)
        alpha = summed / combined / len(next(iter(seen.values())))
    return scaling.factors(names, alpha)
