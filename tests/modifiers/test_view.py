from collections import Counter
from dataclasses import dataclass

import torch
from _helpers.states import open_vectors, random_state

from lwptv_lightning.engine import Execution, Stream
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.modifiers import Reweighting, reweighted
from lwptv_lightning.saliency import ElementPruning, LayerMask, masked, thinned

SHAPES = {"fc.weight": (40, 30), "fc.bias": (40,), "head.weight": (5, 40)}


@dataclass(frozen=True, kw_only=True)
class Halved(Reweighting):
    """Halves matrices, and counts how often it is asked to."""

    calls: Counter

    def treats(self, name, shape):
        return len(shape) == 2

    def reweighted(self, delta, base, once):
        assert delta.shape == base.shape == SHAPES["fc.weight"] or delta.shape == base.shape == SHAPES["head.weight"]
        self.calls[float(delta.flatten()[0])] += 1
        return delta / 2


def opened(**attributes):
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: random_state(seed, shapes=SHAPES) for seed, task in enumerate("abc")}
    plain = Stream.of(open_vectors(base, tasks), **attributes)
    calls = Counter()
    return plain, reweighted(plain, Halved(calls=calls)), calls


def expected(plain, name):
    return plain.stack(name) / (1 if name == "fc.bias" else 2)


def test_nothing_reweighted_is_the_stream_itself():
    plain, _, _ = opened()
    assert reweighted(plain, None) is plain


def test_what_is_treated_is_reweighted_and_the_rest_is_as_it_was():
    plain, view, calls = opened()
    for name in SHAPES:
        assert torch.equal(view.stack(name), expected(plain, name))
    assert len(calls) == 6
    assert set(calls.values()) == {1}


def test_a_pass_in_blocks_reweights_each_task_vector_once_in_any_number_of_threads():
    for threads in (1, 3):
        usual = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            plain, view, calls = opened(execution=Execution(block_bytes=600))
            found = {name: [] for name in SHAPES}
            for block in view.blocks():
                found[block.name].append(block.tau)
            sums = view.sum(lambda block: block.tau.sum())
        finally:
            torch.set_num_threads(usual)
        assert len(found["fc.weight"]) > 9
        for name, blocks in found.items():
            assert torch.equal(torch.cat(blocks, dim=1), expected(plain, name).flatten(1))
            torch.testing.assert_close(sums[name], expected(plain, name).sum())
        assert set(calls.values()) == {2}  # once in each of the two passes


def test_pruned_tasks_are_not_reweighted_and_elements_are_ranked_afterwards():
    plain, view, calls = opened()
    layers = layers_from_names(plain.names, "tensor")
    mask = LayerMask(plain.tasks, layers.names, torch.tensor([[True, True, True], [False, True, True], [False] * 3]))
    pruned = masked(view, layers, mask)
    for name, kept in zip(SHAPES, ([1, 0, 0], [1, 1, 0], [1, 1, 0]), strict=True):
        rows = torch.tensor(kept).reshape(3, *[1] * len(SHAPES[name]))
        assert torch.equal(pruned.stack(name), expected(plain, name) * rows)
    assert sum(count for value, count in calls.items() if value) == 3
    left = thinned(view, layers_from_names(plain.names), ElementPruning(ratio=0.5)).stack("fc.weight")
    together = torch.cat([expected(plain, name).flatten(1) for name in ("fc.weight", "fc.bias")], dim=1)
    least = together.abs().sort(dim=1).values[:, together.shape[1] // 2]
    matrices = expected(plain, "fc.weight")
    assert torch.equal(left, matrices.where(matrices.abs() >= least[:, None, None], 0))


def test_tells_what_a_stack_holds():
    plain, view, _ = opened()
    assert plain.held_bytes("fc.weight") == view.held_bytes("fc.bias") == 0
    assert view.held_bytes("fc.weight") > 2 * 3 * 40 * 30 * 4
