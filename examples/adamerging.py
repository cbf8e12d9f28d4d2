"""Learn merging coefficients on unlabelled images and compare with task arithmetic.

python examples/adamerging.py
"""

from lightning.pytorch import Trainer

from lwptv_lightning import AdaMergingModule, MergeModule, MergeRecipe, TaskVectors, zoo


def main(steps: int = 150, size: int = 150) -> dict[str, float]:
    vectors = TaskVectors.open(zoo.base_path(), zoo.expert_paths())
    learner = AdaMergingModule(MergeModule(zoo.create_model(), vectors, heads=zoo.heads()), lr=1e-2)
    unlabelled = zoo.loaders("train", size=size, batch_size=25, sets=zoo.ID_SETS)
    Trainer(max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False).fit(learner, unlabelled)

    averages = {}
    for name, recipe in {"task_arithmetic": MergeRecipe("task_arithmetic"), "adamerging": learner.recipe()}.items():
        module = MergeModule(zoo.create_model(), vectors, recipe, heads=zoo.heads())
        results = Trainer(logger=False).validate(module, zoo.loaders("test", size=size), verbose=False)
        averages[name] = results[0]["id/avg"]
        print(f"{name}: ID {results[0]['id/avg']:.3f}, OOD {results[0]['ood/avg']:.3f}")
    return averages


if __name__ == "__main__":
    main()
