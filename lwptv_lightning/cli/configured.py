"""What the commands that run a configuration file share: one parser, so that one file serves them all.

``examples/own_models.yaml`` shows the form, docs/configuration.md tells its keys. An older form, a function for
``model`` and one for ``data`` as in ``examples/demo.yaml``, holds too.
"""

import argparse
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lwptv_lightning.cli.checked import require_any, require_known_keys
from lwptv_lightning.cli.configuration import OWN_KEYS, Given, nearest_below, printed, read_arguments, require_options
from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.cli.made import in_one_form, make_module, make_suite, make_trainer, require_sound
from lwptv_lightning.registry import ConfigurationError, own_tasks, printable, shown

OWN_HELP = {
    "model": "a name of timm, or class_path and init_args of any model",
    "model_arguments": "arguments of timm.create_model, such as {num_classes: 10}",
    "base": "the checkpoint that all were fine-tuned from",
    "tasks": "task to checkpoint",
    "heads": "set to another set, whose head judges it, or to a checkpoint",
    "recipe": "a rule's name, fields of a recipe (docs/recipe.md) or its .json file",
    "exclude": "globs of tensors that are not merged",
    "prefix": "what the wanted names start with in Lightning checkpoints",
    "metric": "class_path and init_args of a metric, or one for each loader; top-1 accuracy by default",
    "expert_accuracy": "set to the accuracy of its expert",
    "batch_keys": "where a batch has inputs and targets",
    "output_key": "where the logits are in what the model returns",
    "resize_position_embedding": "resample position embeddings of another image size",
    "data": "id, ood and validation: name to folder of images or name of a data set; batch_size, image_size, ...",
    "tune": "what tune tries: rules, modifiers, scores, ratios, scales, ...; strategy, choice, ... (docs/tune.md)",
    "budget": "of tune: evaluations, or a time such as 10min (default: 200)",
}

_OPTIONS: dict[str, dict[str, Any]] = {
    "save": {
        "type": str | None,
        "help": "validate: where to write the merged model, a .safetensors file or a folder; with its heads, if any",
    },
    "overwrite": {"type": bool, "nargs": "?", "const": True, "default": False, "help": "replace what is there"},
    "out": {"type": str | None, "help": "collect, learn, sweep, tune, validate: where to write; of tune a folder"},
    "only_merged": {
        "type": bool,
        "nargs": "?",
        "const": True,
        "default": False,
        "help": "validate: leave out base and experts",
    },
    "method": {"type": str | None, "help": "learn: layer_gates or adamerging, the default without BASE"},
    "data_statistics": {"type": str | None, "help": "sweep, tune, validate: what collect wrote, for some rules"},
    "store": {"type": str | None, "help": "sweep: a folder for what is measured, to go on from; by default OUT.store"},
    "recalibrate": {
        "type": bool | None,
        "nargs": "?",
        "const": True,
        "help": "sweep, tune: measure running statistics anew on the validation sets, which tune does by default",
    },
    "recipes": {"type": dict[str, str | dict[str, Any]] | None, "help": "sweep: name to recipe"},
    "samples": {"type": int, "default": 256, "help": "collect: how many examples of each task to use"},
}

ABOUT = {
    "others": "Run a merged model over ID and OOD sets, as a configuration file says.",
    "tune": "Choose a recipe on validation samples of the ID sets; write it, its model, and a report on the test sets.",
    "learn": "Learn coefficients on the unlabelled samples of a configuration's ID sets. `lwptv learn BASE "
    "NAME=CHECKPOINT... --data FILE --out FILE` learns gates of these files; --rule is short for --gates.rule, etc.",
}

_OF_GATES: dict[str, dict[str, Any]] = {
    "rule": {"type": str | dict[str, Any], "default": "tsv_m", "help": "a rule that is a sum over tasks"},
    "parts_on": {"type": str | None, "default": None, "help": "where the parts are held, such as cpu"},
}
"""Arguments of `LayerGates` whose types are none of words."""


@contextmanager
def configured(
    command: str, arguments: list[str], complete: Callable[[Any], object] = lambda config: None
) -> Iterator[Any]:
    """Make what a configuration file and options say: a `LightningCLI` with trainer, model, datamodule and config.

    ``datamodule.loaders`` are the sets to report, ``datamodule.validation`` those for choices. ``--print_config``
    prints a file that ``--config`` reads back, and ends the command.

    Args:
        command: Whose arguments these are.
        arguments: What follows the command.
        complete: Sets what was left open in the configuration, before anything is made of it.

    Raises:
        WrongArgumentsError: The configuration, or an option, cannot be taken.
        ValueError: What is made of them, or is done with it in the block, does not fit.
    """
    # Imported here, because the other commands do not wait for Lightning.
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        with _wrong_arguments():
            given = read_arguments(arguments)
            made = _made(command, given, complete)
        yield made
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error


@contextmanager
def _wrong_arguments() -> Iterator[None]:
    """Tell what a configuration cannot be taken for as wrong arguments are told, in our words."""
    from lwptv_lightning.evaluation import in_our_words

    try:
        yield
    except ConfigurationError as error:
        raise WrongArgumentsError(str(error)) from error
    except argparse.ArgumentError as error:
        key, problem = in_our_words(str(error))
        raise WrongArgumentsError(f"{key}: {problem}" if key else problem) from error


def _made(command: str, given: Given, complete: Callable[[Any], object]) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

    from lwptv_lightning.learning import AdaMergingModule, LayerGates

    class Command(LightningCLI):
        model: Any
        datamodule: Any

        def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.add_lightning_class_args(Trainer, "trainer")
            for name in OWN_KEYS:
                parser.add_argument(f"--{name}", type=Any, default=None, help=OWN_HELP[name])

        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name, about in _OPTIONS.items():
                parser.add_argument(f"--{name}", **{"default": None, **about})
            parser.add_class_arguments(AdaMergingModule, "learn", skip={"merge_module"}, instantiate=False)
            parser.add_class_arguments(LayerGates, "gates", skip={"module", *_OF_GATES}, instantiate=False)
            for name, about in _OF_GATES.items():
                parser.add_argument(f"--gates.{name}", **about)

        def before_instantiate_classes(self) -> None:
            values = in_one_form(given.values)
            require_known_keys(values, _other_keys())
            if given.prints:
                print(printed(command, values, self.parser.dump(self.config, skip_unset=False)), end="")
                sys.exit(0)
            require_any(values)
            require_sound(values, self.config.recipes)
            for name in OWN_KEYS:
                self.config[name] = values.get(name)
            complete(self.config)

        def instantiate_classes(self) -> None:
            values = {name: self.config[name] for name in OWN_KEYS}
            others = self.config.clone()
            for name in OWN_KEYS:
                others[name] = None  # which is made here
            self.config_init = self.parser.instantiate_classes(others)
            self.model = make_module(values)
            self.datamodule = make_suite(values, self.model)
            self.trainer = make_trainer(self.instantiate_trainer)
            if self.trainer.is_global_zero:
                for note in self.datamodule.notes:
                    print(f"lwptv {command}: {printable(note)}", file=sys.stderr)

    with warnings.catch_warnings():
        # Lightning suspects a mistake where its arguments are given and the program has some of its own.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
        return Command(
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            auto_configure_optimizers=False,
            args=_for_parser(given),
            parser_kwargs={
                "prog": f"lwptv {command}",
                "description": ABOUT.get(command, ABOUT["others"]),
                "exit_on_error": False,  # it would print the usage, and names as they are
            },
        )


def _for_parser(given: Given) -> list[str]:
    """Return the words for the parser: what files say of its own keys, and the options that follow."""
    for key in ("trainer", "learn", "gates"):
        section = given.values.get(key, {})
        if not isinstance(section, Mapping | None):
            raise ConfigurationError(key, f"expected a mapping, not {shown(section)}.")
        for name in section or ():
            if name not in (known := _keys_of(key)):
                raise ConfigurationError(f"{key}.{name}", f"unknown key.{nearest_below(key, name, known)}")
    require_options(given.rest, (*OWN_KEYS, *_other_keys()), _keys_of)
    own = {name: value for name, value in given.values.items() if name in _other_keys() and value is not None}
    return [*(["--config", json.dumps(own, ensure_ascii=False)] if own else []), *given.rest]


def _other_keys() -> tuple[str, ...]:
    return ("trainer", "seed_everything", *_OPTIONS, "learn", "gates")


def _keys_of(section: str) -> list[str]:
    from lightning.pytorch import Trainer

    from lwptv_lightning.learning import AdaMergingModule, LayerGates

    owner = {"trainer": Trainer, "learn": AdaMergingModule, "gates": LayerGates}[section]
    return [name for name in inspect.signature(owner).parameters if name not in ("merge_module", "module")]


def options_of(command: str) -> dict[str, dict[str, Any]]:
    """Return the options of one command, whose help says of which commands one is, where it is not of all."""
    found = {}
    for name, given in _OPTIONS.items():
        commands, colon, text = given["help"].partition(": ")
        if not colon or command in commands.split(", "):
            found[name] = {**given, "help": text or given["help"]}
    return found


def option(made: Any, name: str) -> Any:
    """Return an option that a command cannot do without; a `WrongArgumentsError` says that it lacks."""
    if (value := made.config[name]) is None:
        raise WrongArgumentsError(f"the following arguments are required: --{name}")
    return value


def output(made: Any) -> str:
    """Return where a command is to write its file, which can be written there; nothing is replaced unasked."""
    from lwptv_lightning.checkpoints import require_writable

    path: str = option(made, "out")
    require_writable(path, overwrite=made.config["overwrite"])
    return path


def say(made: Any, text: str) -> None:
    """Print a line, once where there are several processes."""
    if made.trainer.is_global_zero:
        print(printable(text))


def id_samples(made: Any) -> dict[str, Any]:
    """Return the ID loaders that learning and statistics read: validation sets, or those to report of tasks without.

    Where some tasks have one and others not, a line says so.
    """
    reported = {name: loader for name, loader in made.datamodule.loaders.items() if name.startswith("id/")}
    validation, tasks = made.datamodule.validation, made.model.tasks
    having = {*own_tasks(validation, tasks).values()}
    own = own_tasks(reported, tasks)
    rest = {name: loader for name, loader in reported.items() if own.get(name) not in having}
    if not validation:
        return reported
    if lacking := [name for name in rest if name in own]:
        text = f"no validation set for {', '.join(lacking)}, whose reported samples are read instead"
        if made.trainer.is_global_zero:
            print(f"lwptv: {printable(text)}", file=sys.stderr)
    return {**{name: rest[name] for name in lacking}, **validation}


def take_statistics(made: Any, *recipes: Any) -> None:
    """Give the module the data statistics of the options, where the rule of one of some recipes needs them."""
    from lwptv_lightning.merging import read_data_statistics

    path = made.config["data_statistics"]
    if path is not None and any(recipe.rule.needs for recipe in recipes):
        made.model.statistics = read_data_statistics(path)


def leave_reports_out(made: Any, *, merges: bool = False) -> None:
    """Drop from the trainer what reports on a validation and stores checkpoints, and what ``merges`` or measures."""
    from lightning.pytorch.callbacks import Checkpoint

    from lwptv_lightning.callbacks import MergeReport

    kept = [callback for callback in made.trainer.callbacks if not isinstance(callback, Checkpoint | MergeReport)]
    if merges:
        kept = [
            callback
            for callback in kept
            if not (getattr(callback, "installs_weights", False) or getattr(callback, "place", None) == "measures")
        ]
    made.trainer.callbacks[:] = kept


def mixed(loader: Any, *, each_epoch: bool = False) -> Any:
    """Return a loader with the samples of one that goes through a data set in order, drawn at random, always the same.

    Folders of images are sorted by class, and the first of them are no sample of the set.

    Args:
        loader: A loader; one with a sampler of its own, or without a length, is taken as it is.
        each_epoch: Whether each pass has an order of its own.
    """
    import torch
    from torch.utils.data import DataLoader, SequentialSampler, Subset

    from lwptv_lightning.evaluation import loader_like

    if not isinstance(loader, DataLoader) or type(loader.sampler) is not SequentialSampler or not loader.batch_size:
        return loader
    drawn = torch.Generator().manual_seed(0)
    data: Any = loader.dataset
    if not each_epoch:
        data = Subset(data, torch.randperm(len(data), generator=drawn).tolist())
    return loader_like(loader, data, shuffle=each_epoch, generator=drawn if each_epoch else None)
