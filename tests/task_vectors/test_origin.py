import timm
import torch
from safetensors.torch import save_file

from lwptv_lightning import TaskVectors
from lwptv_lightning.task_vectors import checkpoints_of


def test_files_and_the_models_configuration_stay_known_whatever_names_the_tensors_have(tmp_path):
    model = timm.create_model("resnet10t", num_classes=2)
    save_file({f"net.{name}": value for name, value in model.state_dict().items()}, tmp_path / "base.safetensors")
    vectors = TaskVectors.open(
        tmp_path / "base.safetensors",
        {"a": {name: value + 1 for name, value in model.state_dict().items()}},
        model=model,
    )
    for same in (vectors, vectors.select(["a"]), vectors.load(), vectors.without_weights()):
        base, expert = checkpoints_of(same)
        assert base.folder == tmp_path
        assert base.model_config.config["architecture"] == "resnet10t"
        assert base.stored_headers.keys() == {f"net.{name}" for name in base.headers}
        assert expert.folder is None


def test_another_tasks_base_is_not_changed_by_the_model(tmp_path):
    base = TaskVectors.open({"w": torch.zeros(2)}, {"a": {"w": torch.ones(2)}})
    assert checkpoints_of(base)[0].model_config is None
