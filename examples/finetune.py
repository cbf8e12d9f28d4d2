"""A plain fine-tuning script, and ten lines that store a task vector and report the merged model at each epoch.

python examples/finetune.py
"""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from lwptv_lightning import MergeModule, MergeRecipe, MergeReport, OnlineMerge, TaskVectorCheckpoint, TaskVectors, zoo

TASK = "greek_noise"


class FineTuning(LightningModule):
    """Nothing in here knows of merging."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = zoo.create_model()
        self.backbone.load_state_dict(load_file(zoo.base_path()))
        self.head = zoo.heads()[TASK]
        self.losses: list[float] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("accuracy", accuracy, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.backbone.parameters(), lr=1e-4)


def merging_callbacks(folder: str, size: int) -> list[Callback]:
    experts = {task: path for task, path in zoo.expert_paths().items() if task != TASK}
    vectors = TaskVectors.open(zoo.base_path(), experts)
    merged = MergeModule(zoo.create_model(), vectors, MergeRecipe("task_arithmetic", ratio=0.5), heads=zoo.heads())
    return [
        TaskVectorCheckpoint(folder, TASK, backbone="backbone"),
        OnlineMerge(merged, zoo.loaders("validation", size=size), task=TASK, backbone="backbone"),
        MergeReport(folder),
    ]


def main(size: int = 150, epochs: int = 3, folder: str = "finetuned", merging: bool = True) -> FineTuning:
    callbacks = merging_callbacks(folder, size) if merging else []
    seed_everything(0)
    module = FineTuning()
    train = DataLoader(zoo.dataset(TASK, "train", 4 * size), batch_size=64, shuffle=True)
    validation = DataLoader(zoo.dataset(TASK, "validation", size), batch_size=250)
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, callbacks=callbacks)
    trainer.fit(module, train, validation)
    return module


if __name__ == "__main__":
    main()
