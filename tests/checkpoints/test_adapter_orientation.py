import pytest
import torch
from torch import nn

from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.checkpoints.adapter_orientation import Orientations


class Conv1D(nn.Module):
    """Named as transformers' own."""


def told(shapes, adapted, path, flag=False, modules=None):
    headers = {name: TensorHeader(shape, torch.float32) for name, shape in shapes.items()}
    return Orientations(headers, adapted, modules or {}, flag).is_transposed(path)


@pytest.mark.parametrize("flag", [False, True])
def test_shapes_tell_whatever_the_flag_says(flag):
    shapes = {"a.weight": (3, 5), "b.weight": (3, 5)}
    sides = {"a": (3, 5), "b": (5, 3)}  # in, out
    assert told(shapes, sides, "a", flag) is True
    assert told(shapes, sides, "b", flag) is False


def test_a_module_tells_of_a_square_layer():
    shapes, sides = {"a.weight": (4, 4)}, {"a": (4, 4)}
    assert told(shapes, sides, "a", True, {"a": nn.Linear(4, 4)}) is False
    assert told(shapes, sides, "a", False, {"a": Conv1D()}) is True


BLOCK = {"h.0.c_attn.weight": (4, 12), "h.0.c_attn.bias": (12,), "h.0.c_proj.weight": (4, 4), "head.weight": (9, 4)}


def test_a_layer_of_the_same_name_tells_first():
    shapes = BLOCK | {"h.0.mlp.c_proj.weight": (16, 4), "h.0.mlp.c_proj.bias": (4,)}
    shapes |= {"h.0.up.weight": (16, 4), "h.0.up.bias": (16,)}
    assert told(shapes, {"h.0.c_proj": (4, 4)}, "h.0.c_proj") is True
    assert told(shapes | {"h.0.up2.weight": (4, 4)}, {"h.0.up2": (4, 4)}, "h.0.up2") is None  # its neighbours differ


def test_the_nearest_layers_tell_before_those_farther_off():
    sides = {"h.0.c_proj": (4, 4), "head": (4, 9)}  # the head is no Conv1D
    assert told(BLOCK, sides, "h.0.c_proj") is True
    # Those of a vision model, all of whose layers are square but for two.
    shapes = {"b.0.q.weight": (4, 4), "b.0.mlp.fc1.weight": (16, 4), "b.0.mlp.fc1.bias": (16,)}
    assert told(shapes, {"b.0.q": (4, 4)}, "b.0.q") is False


def test_nothing_tells():
    shapes = {"a.weight": (4, 4), "b.weight": (4, 4)}
    both = {"a": (4, 4), "b": (4, 4)}
    assert told(shapes, both, "a") is False  # no model has square Conv1D layers alone
    assert told(shapes, {"a": (4, 4)}, "a", flag=True) is True
    assert told(shapes, both, "a", flag=True) is None
    # The flag is that of a Conv1D which must be square, and nothing tells which one.
    linear = shapes | {"c.weight": (9, 4), "c.bias": (9,)}
    assert told(linear, both, "a", flag=True) is None


def test_a_layer_that_the_base_has_not():
    assert told({}, {"a": (3, 5)}, "a", flag=True) is True
    assert told({}, {"a": (3, 5)}, "a") is False
