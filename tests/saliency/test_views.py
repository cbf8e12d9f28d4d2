import math

import pytest
import torch

from lwptv_lightning import ElementPruning, LayerMask, TaskVectors, layers_from_names
from lwptv_lightning.engine import Stream
from lwptv_lightning.saliency import masked, thinned


@pytest.fixture
def layers(vectors):
    return layers_from_names(vectors.names)  # stem, fc, head, gain


def mask_of(vectors, layers, kept):
    return LayerMask(vectors.tasks, layers.names, torch.tensor(kept))


KEPT = [[True, False, True, True], [False, False, True, False], [True, False, False, True]]


def test_pruned_layers_are_exact_zeros_and_the_others_untouched(vectors, layers):
    pruned = masked(Stream.of(vectors), layers, mask_of(vectors, layers, KEPT))
    assert pruned.names == layers.tensors
    for index, layer in enumerate(layers):
        for name in layer.tensors:
            stack, full = pruned.stack(name), vectors.stack(name)
            assert pruned.kept(name).tolist() == [row[index] for row in KEPT]
            for task, row in enumerate(KEPT):
                assert torch.equal(stack[task], full[task] if row[index] else torch.zeros_like(full[task]))


def test_what_a_task_prunes_is_not_read(counting_checkpoint, base_state, task_states, layers):
    tasks, reads = zip(*map(counting_checkpoint, task_states.values()), strict=True)
    vectors = TaskVectors.open(base_state, dict(zip(task_states, tasks, strict=True)))
    for counter in reads:
        counter.clear()
    pruned = masked(Stream.of(vectors), layers, mask_of(vectors, layers, KEPT))
    for name in pruned.names:
        assert pruned.stack(name).shape == (3, *base_state[name].shape)
    for row, counter in zip(KEPT, reads, strict=True):
        kept = [layer.tensors for layer, keep in zip(layers, row, strict=True) if keep]
        assert set(counter) == {name for names in kept for name in names}


def test_dtype_and_shapes(vectors, layers):
    mask = mask_of(vectors, layers, KEPT)
    stream = Stream.of(vectors, dtype=torch.float64)
    for pruned in (stream, masked(stream, layers, mask), thinned(stream, layers, ElementPruning(ratio=0.5))):
        assert pruned.tasks == vectors.tasks
        for name in vectors.names:
            assert pruned.stack(name).dtype == torch.float64
            assert pruned.stack(name).shape == (3, *pruned.shapes[name])
            assert pruned.numel(name) == vectors.base(name).numel()


def test_mask_for_other_tasks_or_layers(vectors, layers):
    mask = mask_of(vectors, layers, KEPT)
    with pytest.raises(ValueError, match=r"mask is for tasks \['a', 'b', 'c'\], the task vectors hold \['a', 'b'\]"):
        masked(Stream.of(vectors.select(["a", "b"])), layers, mask)
    with pytest.raises(ValueError, match="made for other layers"):
        masked(Stream.of(vectors), layers_from_names(vectors.names, "tensor"), mask)


@pytest.mark.parametrize("ratio", [0, 0.3, 0.5, 1])
def test_elements_are_pruned_across_the_tensors_of_a_layer(ratio, vectors, layers):
    pruned = thinned(Stream.of(vectors), layers, ElementPruning(ratio=ratio))
    for layer in layers:
        full = torch.cat([vectors.stack(name).reshape(3, -1) for name in layer.tensors], dim=1)
        stack = torch.cat([pruned.stack(name).reshape(3, -1) for name in layer.tensors], dim=1)
        dropped = math.floor(ratio * full.shape[1] + 1e-9)
        for before, after in zip(full, stack, strict=True):
            assert (after == 0).sum() == dropped
            threshold = before.abs().sort().values[dropped:].min() if dropped < len(before) else math.inf
            assert torch.equal(after, torch.where(before.abs() >= threshold, before, 0))


def test_element_pruned_stacks_may_be_asked_for_in_any_order_and_written_to(vectors, layers):
    pruned = thinned(Stream.of(vectors), layers, ElementPruning(ratio=0.5))
    first = {name: pruned.stack(name).clone() for name in layers.tensors}
    for name in reversed(layers.tensors):
        assert torch.equal(pruned.stack(name), first[name])
        pruned.stack(name).fill_(7)
        assert torch.equal(pruned.stack(name), first[name])


@pytest.mark.parametrize(("ratio", "kept"), [(0.99, True), (1, False)])
def test_elements_keep_each_task_unless_all_is_dropped(ratio, kept, vectors, layers):
    assert thinned(Stream.of(vectors), layers, ElementPruning(ratio=ratio)).kept("gain").tolist() == [kept] * 3
