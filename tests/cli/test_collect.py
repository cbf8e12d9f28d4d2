import torch

from lwptv_lightning.callbacks import CollectDataStatistics
from lwptv_lightning.cli import main
from lwptv_lightning.merging import read_data_statistics
from lwptv_lightning.zoo import zoo_module, zoo_suite

CONFIGURATION = """
model: {class_path: lwptv_lightning.zoo.zoo_module, init_args: {recipe: regmean}}
data: {class_path: lwptv_lightning.zoo.zoo_suite, init_args: {size: 6}}
trainer: {logger: false, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
samples: 6
"""


def test_what_a_rule_needs_is_what_the_callback_collects(tmp_path, monkeypatch, make_trainer):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.yaml").write_text(CONFIGURATION)
    main(["collect", "--config", "all.yaml", "--out", "gram.safetensors"])
    callback = CollectDataStatistics("gram", samples=6)
    make_trainer(callbacks=[callback]).validate(zoo_module("regmean"), zoo_suite(size=6), verbose=False)
    found = read_data_statistics("gram.safetensors")
    for task, tensors in callback.statistics.items():
        assert list(found[task]) == list(tensors)
        for name, tensor in tensors.items():  # all samples of each task, added up in another order
            torch.testing.assert_close(found[task][name], tensor, rtol=1e-4, atol=1e-5)
