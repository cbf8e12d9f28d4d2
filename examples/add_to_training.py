"""A plain fine-tuning script; one callback makes each validation that of the merge with two other experts.

python examples/add_to_training.py
"""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.nn.functional import cross_entropy

from lwptv_lightning import MergeRecipe, PruneAndMerge, TaskVectors, zoo

TASK = "greek_noise"


class FineTuning(LightningModule):
    """Nothing in here knows of merging."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = zoo.create_model()
        self.head = zoo.heads()[TASK]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        accuracy = (self(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("accuracy", accuracy, prog_bar=True, batch_size=len(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.backbone.parameters(), lr=1e-4)


def main(size: int = 150, epochs: int = 1) -> dict[str, float]:
    experts = {task: path for task, path in zoo.expert_paths().items() if task in ("upper_photo", TASK)}
    vectors = TaskVectors.open(zoo.base_path(), experts)
    merged = PruneAndMerge(vectors, MergeRecipe("task_arithmetic", ratio=0.5), backbone="backbone")
    trainer = Trainer(max_epochs=epochs, logger=False, enable_checkpointing=False, callbacks=[merged])
    train, validation = (zoo.loaders(split, size=size, sets=[TASK])[f"id/{TASK}"] for split in ("train", "validation"))
    # Validation sees the merged weights; training goes on with its own, bit for bit.
    trainer.fit(FineTuning(), train, validation)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    main()
