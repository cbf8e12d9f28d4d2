"""``lwptv collect``: what Fisher merging and RegMean need, from the sets of a configuration file."""

import argparse

from lwptv_lightning.cli.configured import configured, id_samples, leave_reports_out, mixed, output
from lwptv_lightning.cli.results import Result
from lwptv_lightning.cli.running import running
from lwptv_lightning.registry import printable

EXAMPLE = "lwptv collect --config suite.yaml --recipe fisher --samples 8 --out fisher.safetensors"


def run(options: argparse.Namespace) -> Result:
    """Collect what a rule needs to know of the tasks' data."""
    from lwptv_lightning.callbacks import CollectDataStatistics

    with configured("collect", options.arguments) as made:
        rule, path = made.model.recipe.rule, output(made)
        if not rule.needs:
            raise ValueError(
                f"the rule {rule.name!r} needs no statistics of data: say which rule they are for, such as "
                "--model.recipe fisher."
            )
        leave_reports_out(made)
        made.trainer.callbacks.append(CollectDataStatistics(rule.needs, samples=made.config["samples"], file=path))
        sets = {name: mixed(loader) for name, loader in id_samples(made).items()}
        with running(made.trainer):
            made.trainer.validate(made.model, sets, verbose=False)
        values = {"out": path, "rule": rule.name, "needs": rule.needs, "samples": made.config["samples"]}
        return Result(values, [printable(f"What {rule.name} needs is in {path}")])
