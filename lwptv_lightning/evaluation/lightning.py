"""Lightning behind names of our own: the one place of the package that touches what is private to it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer.connectors.logger_connector.result import warning_cache
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from rich.markup import escape
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lwptv_lightning.engine import ALONE, Ranks
from lwptv_lightning.evaluation.shares import Replicas, Stream, share_loaders
from lwptv_lightning.merging import Undo, keep_modes, swap_
from lwptv_lightning.registry import any_character, encodable, printable_name

_EMOJI = re.compile(r":(?=\S+:)")


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, where there is one; ``module.trainer`` raises without."""
    return module._trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's callbacks."""
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def set_callbacks_(trainer: Trainer, callbacks: Iterable[Callback]) -> None:
    """Give a trainer other callbacks; hooks that are being called go on with those that it had."""
    trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]


def is_averaging(callback: Callback) -> bool:
    """Tell whether a callback is one of Lightning's that put averaged weights into a module."""
    return isinstance(callback, WeightAveraging | StochasticWeightAveraging)


_SWAPS = ("on_validation_epoch_start", "on_validation_epoch_end")
"""The hooks in which `WeightAveraging` puts the averaged weights in, and takes them out again."""


def swap_averaged_(trainer: Trainer, module: LightningModule, undo: Undo, *, into: bool) -> None:
    """Put the averaged weights of `WeightAveraging` into a module or take them out, as it does for a validation."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging):
            with Undo() as own:
                own.add(vars(callback).pop, "_swap_models", None)
                vars(callback)["_swap_models"] = partial(_swap_models_, callback, undo)
                # Of the class: `suspend_averaging_` hides the object's own.
                getattr(type(callback), _SWAPS[not into])(callback, trainer, module)
                own.take_back()


def _swap_models_(callback: WeightAveraging, undo: Undo, module: LightningModule) -> None:
    """Do what the callback's own method does, until ``undo`` has it stay or takes it back."""
    averages: Any = callback._average_model
    undo.hold()
    for average, current in zip(_tensors_of(averages.module), _tensors_of(module), strict=False):
        swap_(average.data, current.data, undo)


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    yield from chain(module.parameters(), module.buffers())


def suspend_averaging_(trainer: Trainer, suspended: bool) -> None:
    """Keep `WeightAveraging` from swapping weights by itself, or let it do so again."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, WeightAveraging):
            for hook in _SWAPS:
                if suspended:
                    setattr(callback, hook, None)  # a hook that cannot be called is left out
                else:
                    vars(callback).pop(hook, None)


def sync_buffers_(trainer: Trainer) -> None:
    """Give all processes the first one's buffers, as DistributedDataParallel does at a validation's first batch."""
    model: Any = trainer.model
    if isinstance(model, DistributedDataParallel) and model.broadcast_buffers:
        for buffer in model.module.buffers():
            torch.distributed.broadcast(buffer.detach(), src=0)


def averages_of(trainer: Trainer) -> list[nn.Module]:
    """Return the modules that hold the averaged weights, which further validations would put into a trainer's."""
    averaging = (callback for callback in callbacks_of(trainer) if isinstance(callback, WeightAveraging))
    return [callback._average_model.module for callback in averaging if callback._average_model is not None]


@contextmanager
def draws_kept(loaders: Iterable[Any] = ()) -> Iterator[None]:
    """Put back all random states afterwards: torch's, NumPy's, Python's and those of the generators of some loaders."""
    generators = [generator for loader in loaders for generator in _generators_of(loader)]
    with Undo() as undo:
        undo.add(_set_rng_states, _collect_rng_states())
        for generator in generators:
            undo.add(generator.set_state, generator.get_state())
        yield
        undo.take_back()


def _generators_of(loader: Any) -> list[torch.Generator]:
    batches = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None))
    return [own for owner in owners if isinstance(own := getattr(owner, "generator", None), torch.Generator)]


@contextmanager
def validating(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Let a trainer and the module that it trains say that they validate, whatever they are doing."""
    with Undo() as undo:
        undo.remember(trainer.state, "stage")
        keep_modes(module, undo)
        trainer.state.stage = RunningStage.VALIDATING
        for part in module.modules():
            part.training = False  # not by `eval()`, in which a module may do more than that
        yield
        undo.take_back()


def restore_modes_(trainer: Trainer, module: LightningModule) -> None:
    """Give a module the modes that it had when an evaluation began; one that fails leaves them to the next run."""
    if trainer.predicting:
        trainer.predict_loop._module_mode.restore(module)
    elif trainer.evaluating or trainer.sanity_checking:
        trainer._evaluation_loop._module_mode.restore(module)


def transferred(trainer: Trainer, batch: Any) -> Any:
    """Return a batch as a trainer's evaluation hands it to a step: in its precision, through all hooks of transfer."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def fit_loaders(trainer: Trainer) -> Any:
    """Return the loaders of a fit that begins, as they were given."""
    loaders = trainer.fit_loop._data_source.dataloader()
    return loaders.iterables if isinstance(loaders, CombinedLoader) else loaders


def fit_on_(trainer: Trainer, batches: Any) -> None:
    """Let a fit that begins take other batches than those of its loaders."""
    trainer.fit_loop._data_source.instance = batches


def stage_of(trainer: Trainer) -> str:
    """Return what a running trainer is doing: one of ``"validate"``, ``"sanity_check"``, ``"test"``, ``"predict"``."""
    return str(trainer.state.stage.value)  # type: ignore[union-attr]


def loaders_of(trainer: Trainer, stage: str) -> Any:
    """Return the loaders of an evaluation as they were given; ``None`` where there are none, as of a fit."""
    name = {"validate": "val_dataloaders", "test": "test_dataloaders", "predict": "predict_dataloaders"}.get(stage)
    return None if name is None else getattr(trainer, name)


def batch_limit(trainer: Trainer) -> int | None:
    """Return how many batches a fast development run takes of each loader; ``None`` in any other run."""
    return int(trainer.fast_dev_run) or None  # type: ignore[attr-defined]


def replicas_of(trainer: Trainer | None) -> Replicas:
    """Return which of a trainer's processes divide the samples; those that hold one model together see the same."""
    if trainer is None:
        return Replicas()
    divided = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return Replicas(ranks_of(trainer), divided["rank"], divided["num_replicas"])


def shared_loaders(trainer: Trainer, loaders: Mapping[str, Any]) -> dict[str, Any]:
    """Return loaders of which each process gets its share, for an evaluation within another run of the trainer's."""
    return share_loaders(loaders, replicas_of(trainer), batch_limit(trainer))


def share_evaluation_(trainer: Trainer, stage: str, share: Callable[..., dict[str, Any]] = share_loaders) -> None:
    """Let a trainer that sets up an evaluation take the loaders that `share_loaders` makes of its own."""
    if stage == "predict" and trainer._accelerator_connector.use_distributed_sampler:
        require_samples_for_all(trainer.predict_loop._data_source.dataloader(), replicas_of(trainer))
    loops = {"validate": trainer.validate_loop, "test": trainer.test_loop}
    limits = {"validate": trainer.limit_val_batches, "test": trainer.limit_test_batches}
    if stage not in loops or limits[stage] == 0:
        return
    source = loops[stage]._data_source
    source.instance = share(uncombined(source.dataloader()), replicas_of(trainer), limits[stage])
    loops[stage]._print_results = _print_results  # type: ignore[method-assign]


def require_samples_for_all(loaders: Any, replicas: Replicas) -> None:
    """Raise `ValueError` where a data set to predict has fewer samples than there are processes, which would abort."""
    given = loaders.iterables if isinstance(loaders, CombinedLoader) else loaders
    several = given if isinstance(given, Mapping) else dict(enumerate(given if isinstance(given, list) else [given]))
    for name, loader in several.items() if replicas.size > 1 else ():
        data = loader.dataset if isinstance(loader, DataLoader) else None
        if isinstance(data, Sized) and not isinstance(loader.sampler, DistributedSampler) and len(data) < replicas.size:
            raise ValueError(
                f"loader {name!r} has {len(data)} samples, fewer than the {replicas.size} processes that predict; "
                "predict them in one process."
            )


def _print_results(results: list[dict[str, Any]], stage: str) -> None:
    """Print what an evaluation returns as the trainer does, with names as text, which it would take for markup."""
    shown = [{_unmarked(name): value for name, value in entry.items()} for entry in results]
    with any_character():
        _EvaluationLoop._print_results(shown, stage)  # type: ignore[arg-type]


def _unmarked(name: str) -> str:
    """Return markup that shows a name; what looks like the code of an emoji is parted by a style that is none."""
    # Of what ends in a backslash rich would double that, as if markup followed.
    return _EMOJI.sub(":[none][/none]", escape(f"{printable_name(name)} ")[:-1])


def uncombined(loaders: Any) -> Any:
    """Return the loaders in a `CombinedLoader`, or what else is given.

    Raises:
        ValueError: It does not go through them one after the other.
    """
    if not isinstance(loaders, CombinedLoader):
        return loaders
    if loaders._mode != "sequential":
        raise ValueError(
            f"a CombinedLoader of mode {loaders._mode!r} mixes the batches of several loaders; use mode 'sequential', "
            "or give the dict of loaders itself."
        )
    return loaders.iterables


def require_every_loader(trainer: Trainer) -> None:
    """Raise `ValueError` where a training's batches leave out loaders that are exhausted."""
    combined = trainer.fit_loop._combined_loader
    if combined is not None and combined._mode == "max_size":
        raise ValueError(
            "a CombinedLoader of mode 'max_size' gives batches without the loaders that are exhausted; use "
            "'max_size_cycle', which a dict of loaders gets, or 'min_size'."
        )


def require_results_here(trainer: Trainer, results: str) -> None:
    """Raise `ValueError` where a trainer evaluates in processes that end with it, and what they found with them."""
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise ValueError(
            f"{results} would be lost with the processes that the trainer's strategy starts for each run, as "
            "'ddp_spawn' and 'ddp_notebook' do; use strategy='ddp'."
        )


def is_last_batch(trainer: Trainer, loader: Any, batch_idx: int, index: int) -> bool:
    """Tell whether a batch is the last that an evaluation takes of its loader, which is its ``index``-th one."""
    number = trainer._evaluation_loop.max_batches[index]
    if isinstance(loader, Stream) and loader.total is not None:
        number = min(number, loader.total)
    return batch_idx + 1 == number


def log_figures_(module: LightningModule, figures: Mapping[str, float]) -> None:
    """Log figures of all processes, as precise as they are, whatever the precision."""
    figures = {encodable(name): figure for name, figure in figures.items()}
    tell_reduced_(figures)
    for name, figure in figures.items():
        value = torch.tensor(figure, device=module.device, dtype=torch.float32)
        module.log(name, value, on_step=False, on_epoch=True, add_dataloader_idx=False, batch_size=1)


def tell_reduced_(figures: Iterable[str]) -> None:
    """Spare those who log figures of all processes the hint that figures of one process should be reduced."""
    for name in figures:
        warning_cache.add(
            f"It is recommended to use `self.log({name!r}, ..., sync_dist=True)` when logging on epoch level in "
            "distributed setting to accumulate the metric across devices."
        )


def forget_logged_(module: LightningModule) -> None:
    """Make a module's trainer forget what was logged in earlier evaluations.

    It remembers as which loader's a name was logged, and fails when the name is another loader's in a later run.
    """
    logged: Any = {} if module._trainer is None else module._trainer._results or {}
    for key in [key for key in logged if key.startswith(("validation_step.", "test_step."))]:
        del logged[key]


def ranks_of(trainer: Trainer) -> Ranks:
    """Return a trainer's processes; a trainer of one device works alone, whatever process group there is."""
    return Ranks.current() if trainer.world_size > 1 else ALONE


@contextmanager
def merging_together(trainer: Trainer) -> Iterator[Ranks]:
    """Give a trainer's processes for a merge; where one of them fails all of them do. Some strategies are refused."""
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError(
            "FSDPStrategy flattens parameters, so that merged weights cannot be installed; use "
            "ModelParallelStrategy, which shards with FSDP2."
        )
    ranks = ranks_of(trainer)
    with ranks.sharing_errors():
        yield ranks


def on_rank_zero(trainer: Trainer, action: Callable[[], Any]) -> Any:
    """Run something on the first process; all of them get its result, or its error."""
    with ranks_of(trainer).sharing_errors():
        result = action() if trainer.is_global_zero else None
    return trainer.strategy.broadcast(result)
