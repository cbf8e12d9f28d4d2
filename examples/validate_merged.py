"""Merge the zoo's experts by several recipes and validate each over ID and OOD sets.

python examples/validate_merged.py
"""

from lightning.pytorch import Trainer

from lwptv_lightning import MergeModule, MergeRecipe, MergeReport, TaskVectors, zoo


def main(size: int = 150, folder: str = "lwptv_validate") -> None:
    vectors = TaskVectors.open(zoo.base_path(), zoo.expert_paths())
    trainer = Trainer(logger=False, callbacks=[MergeReport(folder)])
    for recipe in (
        MergeRecipe("task_arithmetic"),
        MergeRecipe("task_arithmetic", ratio=0.5),
        MergeRecipe("ties", ratio=0.5),
    ):
        module = MergeModule(zoo.create_model(), vectors, recipe, heads=zoo.heads())
        trainer.validate(module, zoo.loaders("test", size=size), verbose=False)


if __name__ == "__main__":
    main()
