import statistics
from functools import partial

import torch
from safetensors.torch import load_file

from lwptv_lightning.zoo import base_path, create_model, heads
from lwptv_lightning.zoo.training import batches, draw_task, fit


def test_tuning_lowers_the_loss_and_leaves_the_head_alone():
    model, head = create_model(), heads()["lower_rotated"]
    model.load_state_dict(load_file(base_path()))
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    data = batches(partial(draw_task, "lower_rotated", seed=1), batch_size=32, steps=25)
    losses = fit(model, head, data, steps=25, learning_rate=1e-3)
    assert statistics.mean(losses[-8:]) < 0.8 * statistics.mean(losses[:8])
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())
    assert not model.training
