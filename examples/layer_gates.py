"""Learn how much of each layer of each task to take, on unlabelled images, and compare with task arithmetic's front.

python examples/layer_gates.py
"""

from lightning.pytorch import Trainer

from lwptv_lightning import LayerGates, MergeRecipe, sweep, zoo


def main(steps: int = 90, images: int = 64, size: int = 150) -> dict[str, float]:
    module = zoo.zoo_module()
    gates = LayerGates(module, images=images)
    unlabelled = zoo.loaders("train", size=images, sets=zoo.ID_SETS)
    Trainer(max_steps=steps, logger=False, enable_checkpointing=False).fit(gates, unlabelled)

    learnt = gates.recipe()
    recipes = {f"task_arithmetic x {scale}": MergeRecipe("task_arithmetic", scale) for scale in (0.1, 0.15, 0.2, 0.3)}
    recipes |= {f"gates x {scale}": learnt.replace(scale=scale) for scale in (0.6, 0.8, 1.0)}
    found = sweep(Trainer(logger=False), module, recipes, zoo.loaders("test", size=size))
    means = {}
    for name in recipes:
        figures = found.figures(name)
        means[name] = (figures["id/avg"] + figures["ood/avg"]) / 2
        parts = ", ".join(f"{domain} {100 * figures[f'{domain}/avg']:.1f}" for domain in ("id", "ood/near", "ood/far"))
        print(f"{name}: {parts}")
    return means


if __name__ == "__main__":
    main()
