"""``lwptv learn``: AdaMerging's coefficients, learnt on the unlabelled samples of a configuration's ID sets."""

import argparse

from lwptv_lightning.cli.configured import configured, leave_reports_out, mixed, output, say
from lwptv_lightning.registry import own_tasks, require_known


def run(options: argparse.Namespace) -> None:
    """Learn the coefficients of AdaMerging on unlabelled samples, as a configuration file says."""
    from lwptv_lightning.evaluation import require_results_here
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.learning import AdaMergingModule

    with configured("learn", options.arguments) as made:
        path = output(made)
        limits = made.config["trainer"]
        if limits["max_steps"] == -1 and limits["max_epochs"] is limits["max_time"] is None:
            raise ValueError("say how long to learn, such as --trainer.max_steps 500.")
        require_results_here(made.trainer, "the coefficients")
        leave_reports_out(made)
        module = AdaMergingModule(made.model, **made.config["learn"])
        loaders = made.datamodule.loaders
        own = own_tasks(loaders, made.model.tasks)
        for task in made.model.tasks:
            require_known("loader", f"id/{task}", [*loaders, *(f"id/{task}" for task in own.values())])
        made.trainer.fit(module, {name: mixed(loaders[name], each_epoch=True) for name in own})
        if made.trainer.is_global_zero:
            write_whole(path, module.recipe().to_json())
        say(made, f"The learnt recipe is in {path}")
