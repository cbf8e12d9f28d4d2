import torch
from torch import nn

from lwptv_lightning.evaluation import NormAverages, measuring, norms_of, of_norms


def model():
    return nn.Sequential(nn.BatchNorm1d(2, momentum=0.3), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(0.9))).eval()


def test_averages_are_of_batches_and_leave_modes_and_momenta():
    made, batches = model(), [torch.randn(4, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    averages = NormAverages(norms_of(made))
    with measuring(made, averages.norms):
        for batch in batches:
            with averages.adding():
                made(batch)
        made(batches[0] * 100)  # not added
    found = averages.tensors()
    assert list(found) == list(of_norms(norms_of(made)))
    torch.testing.assert_close(found["0.running_mean"], torch.stack([each.mean(0) for each in batches]).mean(0))
    torch.testing.assert_close(found["0.running_var"], torch.stack([each.var(0) for each in batches]).mean(0))
    assert found["1.0.num_batches_tracked"] == 3
    assert made[0].momentum == 0.3
    assert not any(part.training for part in made.modules())


def test_a_layer_that_no_batch_goes_through_has_none():
    made = model()
    averages = NormAverages(norms_of(made))
    with measuring(made, averages.norms), averages.adding():
        made[0](torch.randn(4, 2))
    assert set(averages.tensors()) == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}


def test_norms_without_running_statistics_are_none():
    assert not norms_of(nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2)))
