"""What the commands that run a configuration file share: one parser, so that one file serves them all.

A configuration names one function for ``model`` and one for ``data``; ``examples/demo.yaml`` shows the form. Functions
or classes of your own, in any importable module, do as well.
"""

import argparse
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lwptv_lightning.cli.ending import WrongArgumentsError
from lwptv_lightning.registry import printable

_OPTIONS: dict[str, dict[str, Any]] = {
    "save": {
        "type": str | None,
        "help": "validate: where to write the merged model, a .safetensors file or a folder; with its heads, if any",
    },
    "overwrite": {"type": bool, "nargs": "?", "const": True, "default": False, "help": "replace what is there"},
    "out": {"type": str | None, "help": "collect, learn, sweep: the file to write"},
    "method": {"type": str | None, "help": "learn: layer_gates or adamerging, the default without BASE"},
    "data_statistics": {"type": str | None, "help": "validate, sweep: what collect wrote, for rules that need it"},
    "recipes": {"type": dict[str, str | dict[str, Any]] | None, "help": "sweep: name to recipe"},
    "samples": {"type": int, "default": 256, "help": "collect: how many examples of each task to use"},
}

_ABOUT = {
    "others": "Run a merged model over ID and OOD sets, as a configuration file says.",
    "learn": "Learn coefficients on the unlabelled samples of a configuration's ID sets. `lwptv learn BASE "
    "NAME=CHECKPOINT... --data FILE --out FILE` learns gates of these files; --rule is short for --gates.rule, etc.",
}

_OF_GATES: dict[str, dict[str, Any]] = {
    "rule": {"type": str | dict[str, Any], "default": "tsv_m", "help": "a rule that is a sum over tasks"},
    "parts_on": {"type": str | None, "default": None, "help": "where the parts are held, such as cpu"},
}
"""Arguments of `LayerGates` whose types are none of words."""

_OF_LOADERS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "persistent_workers",
)
"""What of a loader is not about its order."""


@contextmanager
def configured(
    command: str, arguments: list[str], complete: Callable[[Any], object] = lambda config: None
) -> Iterator[Any]:
    """Make what a configuration file and options say: a `LightningCLI` with trainer, model, datamodule and config.

    Args:
        command: Whose arguments these are.
        arguments: What follows the command.
        complete: Sets what was left open in the configuration, before anything is made of it.

    Raises:
        WrongArgumentsError: The parser does not take them.
        ValueError: What is made of them, or is done with it in the block, does not fit.
    """
    # Imported here, because the other commands do not wait for Lightning.
    from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from lwptv_lightning.evaluation import EvaluationSuite, MergeModule
    from lwptv_lightning.learning import AdaMergingModule, LayerGates

    class Command(LightningCLI):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            for name, given in _OPTIONS.items():
                parser.add_argument(f"--{name}", **{"default": None, **given})
            parser.add_class_arguments(AdaMergingModule, "learn", skip={"merge_module"}, instantiate=False)
            parser.add_class_arguments(LayerGates, "gates", skip={"module", *_OF_GATES}, instantiate=False)
            for name, given in _OF_GATES.items():
                parser.add_argument(f"--gates.{name}", **given)

        def before_instantiate_classes(self) -> None:
            complete(self.config)

    try:
        with warnings.catch_warnings():
            # Lightning suspects a mistake where its arguments are given and the program has some of its own.
            warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
            made = Command(
                MergeModule,
                EvaluationSuite,
                subclass_mode_model=True,
                subclass_mode_data=True,
                run=False,
                save_config_callback=None,
                seed_everything_default=False,
                args=arguments,
                parser_kwargs={
                    "prog": f"lwptv {command}",
                    "description": _ABOUT.get(command, _ABOUT["others"]),
                    "exit_on_error": False,  # it would print the usage, and names as they are
                },
            )
        yield made
    except argparse.ArgumentError as error:
        raise WrongArgumentsError(str(error)) from error
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise _as_raised(error) from error


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


def take_statistics(made: Any, *recipes: Any) -> None:
    """Give the module the data statistics of the options, where the rule of one of some recipes needs them."""
    from lwptv_lightning.merging import read_data_statistics

    path = made.config["data_statistics"]
    if path is not None and any(recipe.rule.needs for recipe in recipes):
        made.model.statistics = read_data_statistics(path)


def leave_reports_out(made: Any) -> None:
    """Drop from the trainer what reports on a validation and what stores checkpoints."""
    from lightning.pytorch.callbacks import Checkpoint

    from lwptv_lightning.callbacks import MergeReport

    kept = [callback for callback in made.trainer.callbacks if not isinstance(callback, Checkpoint | MergeReport)]
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

    if not isinstance(loader, DataLoader) or type(loader.sampler) is not SequentialSampler or not loader.batch_size:
        return loader
    drawn = torch.Generator().manual_seed(0)
    data: Any = loader.dataset
    if not each_epoch:
        data = Subset(data, torch.randperm(len(data), generator=drawn).tolist())
    return DataLoader(
        data,
        batch_size=loader.batch_size,
        shuffle=each_epoch,
        generator=drawn if each_epoch else None,
        **{name: getattr(loader, name) for name in _OF_LOADERS},
    )


def _as_raised(error: BaseException) -> BaseException:
    """Return what a function of the configuration raised, of which jsonargparse says that no type fits."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error
