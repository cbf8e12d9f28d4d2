import torch

from lwptv_lightning.checkpoints import Spool


def test_what_is_put_in_is_read_in_any_order(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 2).T,
        "coarse": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "number": torch.tensor(7),
        "nothing": torch.empty(0, 3),
        "tiny": torch.tensor([0.5]).to(torch.float8_e4m3fn),
    }
    spool = Spool(tmp_path / "spool")
    for name, tensor in tensors.items():
        spool.put(name, tensor)
    for name in reversed(tensors):
        found = spool.read(name)
        assert found.dtype == tensors[name].dtype
        assert torch.equal(found.float(), tensors[name].float())
        assert spool.headers[name].shape == tuple(found.shape)
    spool.put("more", torch.ones(1))
    assert spool.read("more") == 1
    spool.close()
