"""``lwptv learn``: AdaMerging's coefficients, learnt on the unlabelled samples of a configuration's ID sets."""

import argparse

from lwptv_lightning.cli.configured import configured, leave_reports_out, mixed, output
from lwptv_lightning.registry import printable, require_known


def run(options: argparse.Namespace) -> None:
    """Learn the coefficients of AdaMerging on unlabelled samples, as a configuration file says."""
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.learning import AdaMergingModule

    with configured("learn", options.arguments) as made:
        path = output(made)
        if made.config["trainer"]["max_steps"] == -1 and made.config["trainer"]["max_epochs"] is None:
            raise ValueError("say how long to learn, such as --trainer.max_steps 500.")
        leave_reports_out(made)
        module = AdaMergingModule(made.model, **made.config["learn"])
        own = [f"id/{task}" for task in made.model.tasks]
        loaders = made.datamodule.loaders
        for name in own:
            require_known("loader", name, loaders)
        made.trainer.fit(module, {name: mixed(loaders[name], each_epoch=True) for name in own})
        if made.trainer.is_global_zero:
            write_whole(path, module.recipe().to_json())
        print(printable(f"The learnt recipe is in {path}"))
