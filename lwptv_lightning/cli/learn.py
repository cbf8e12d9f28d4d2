"""``lwptv learn``: coefficients that are learnt on the unlabelled samples of a configuration's ID sets."""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any

from lwptv_lightning.cli.arguments import pairs
from lwptv_lightning.cli.configured import configured, id_samples, leave_reports_out, mixed, output
from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.cli.results import Result
from lwptv_lightning.cli.running import running
from lwptv_lightning.registry import own_tasks, printable, require_known

EXAMPLE = "lwptv learn --config suite.yaml --method layer_gates --trainer.max_steps 2 --out gates.json"
METHODS = ("layer_gates", "adamerging")
STEPS = 90
"""Those of LayerGates where nothing says how long to learn."""


def run(options: argparse.Namespace) -> Result:
    """Learn a recipe's coefficients on unlabelled samples."""
    from lwptv_lightning.evaluation import require_results_here
    from lwptv_lightning.files import write_whole
    from lwptv_lightning.learning import AdaMergingModule, LayerGates

    arguments, usual = in_full(options.arguments)

    def complete(config: Any) -> None:
        config.method = usual if config.method is None else config.method
        require_known("--method", config.method, METHODS)
        limits = config.trainer
        if limits.max_steps == -1 and limits.max_epochs is limits.max_time is None:
            if config.method == "adamerging":
                raise ValueError("say how long to learn, such as --trainer.max_steps 500.")
            limits.max_steps = STEPS

    with configured("learn", arguments, complete) as made:
        path = output(made)
        require_results_here(made.trainer, "the coefficients")
        leave_reports_out(made)
        gated = made.config["method"] == "layer_gates"
        module: Any = LayerGates if gated else AdaMergingModule
        module = module(made.model, **made.config["gates" if gated else "learn"])
        loaders = id_samples(made)
        own = own_tasks(loaders, made.model.tasks)
        for task in made.model.tasks:
            require_known("loader", f"id/{task}", [*loaders, *(f"id/{task}" for task in own.values())])
        if gated:  # one loader a task: that without a group, where there is one
            own = {name: task for name, task in own.items() if name == f"id/{task}" or f"id/{task}" not in own}
        with running(made.trainer):
            made.trainer.fit(module, {name: mixed(loaders[name], each_epoch=not gated) for name in own})
        recipe = module.recipe()
        if made.trainer.is_global_zero:
            write_whole(path, recipe.to_json())
        values = {"out": path, "method": made.config["method"], "recipe": recipe.to_dict()}
        return Result(values, [printable(f"The learnt recipe is in {path}")])


def in_full(arguments: list[str]) -> tuple[list[str], str]:
    """Return the arguments as a configuration's parser takes them, and the method where none is named.

    ``BASE TASK...`` stand in the place of the model's ``base`` and ``tasks``, ``--data FILE`` is another name of
    ``--config FILE`` then, and options of LayerGates have short names: ``--rule`` for ``--gates.rule``.

    Example:
        >>> in_full(["b.pt", "a=a.pt", "--data", "s.yaml", "--images=9"])[0][:3]
        ['--config', 's.yaml', '--gates.images=9']
    """
    words, rest = _parted(arguments)
    if not words:
        return [*map(_of_gates, rest)], "adamerging"
    base, *tasks = words
    if "=" in base and not Path(base).exists():
        raise WrongArgumentsError(f"BASE comes before TASK...: expected a checkpoint, not {base!r}")
    if not tasks:
        raise WrongArgumentsError("the following arguments are required: NAME=CHECKPOINT")
    if not any(_name_of(word) in ("--data", "--config") for word in rest):
        raise WrongArgumentsError("the following arguments are required: --data")
    given = {"base": base, "tasks": json.dumps(pairs("a task", tasks))}
    named = [f"--model.init_args.{name}={value}" for name, value in given.items()]
    return [*(_of_gates(_as_config(word)) for word in rest), *named], "layer_gates"


def _name_of(word: str) -> str:
    return word.partition("=")[0]


def _as_config(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"--config{equals}{value}" if name == "--data" else word


def _parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the words that are no options, and all that is an option or the word behind one."""
    words: list[str] = []
    rest: list[str] = []
    follows = False
    for word in arguments:
        is_option = word.startswith("-")
        (rest if is_option or follows else words).append(word)
        follows = is_option and "=" not in word and word not in ("--overwrite", "--help", "-h")
    return words, rest


def _of_gates(word: str) -> str:
    name, equals, value = word.partition("=")
    known = name.removeprefix("--").replace("-", "_")
    return f"--gates.{known}{equals}{value}" if name.startswith("--") and known in _names_of_gates() else word


def _names_of_gates() -> list[str]:
    from lwptv_lightning.learning import LayerGates

    return list(inspect.signature(LayerGates).parameters)[1:]
