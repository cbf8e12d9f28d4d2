"""A configuration's model and data, made: the flat form by its keys, the older one by its own functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lwptv_lightning.cli.checked import require_data, require_model, require_recipe
from lwptv_lightning.cli.configuration import MODEL_KEYS, put
from lwptv_lightning.cli.paths import is_old
from lwptv_lightning.registry import ConfigurationError, nearest, shown

if TYPE_CHECKING:
    from torch import nn

    from lwptv_lightning.evaluation import EvaluationSuite, MergeModule

_FIXED = ("model_name", "pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir")


def in_one_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose keys stand where they are looked for.

    A text for ``model`` or ``data`` that is the path of a class or function becomes its ``class_path``. Where
    ``model`` names a function of a whole `MergeModule`, keys such as ``base`` and ``recipe`` are its arguments. What is
    null among tasks and heads is left out.
    """
    from lwptv_lightning.evaluation import accepted

    found = dict(values)
    for name in ("model", "data"):
        if isinstance(path := found.get(name), str) and _is_importable(path):
            found[name] = {"class_path": path}
    if isinstance(model := found.get("model"), Mapping) and "class_path" in model and is_old(model):
        for name in MODEL_KEYS[1:]:
            if name in found:
                put(found, ["model", "init_args", name], found.pop(name), "")
        return found
    if isinstance(model, Mapping) and isinstance(arguments := model.get("init_args"), Mapping):
        # Where `lwptv learn BASE TASK...` puts them.
        lifted = [name for name in ("base", "tasks") if name in arguments and name not in accepted(model["class_path"])]
        found["model"] = {**model, "init_args": {name: arguments[name] for name in arguments if name not in lifted}}
        found |= {name: arguments[name] for name in lifted}
    for name in ("tasks", "heads"):
        if isinstance(given := found.get(name), Mapping):
            found[name] = {key: value for key, value in given.items() if value is not None}
    return found


def require_sound(values: Mapping[str, Any], recipes: Mapping[str, Any] | None = None) -> None:
    """Raise a `ConfigurationError` for what can be known to be wrong before anything is made.

    Args:
        values: The configuration.
        recipes: Those to compare.
    """
    if not is_whole(values):
        require_model(values)
        for name, recipe in (recipes or {}).items():
            require_recipe(f"recipes.{name}", recipe)
    require_data(values)


def is_whole(values: Mapping[str, Any]) -> bool:
    """Tell whether ``model`` is a function of a whole `MergeModule`."""
    model = values.get("model")
    return isinstance(model, Mapping) and "class_path" in model and is_old(model)


def make_module(values: Mapping[str, Any]) -> MergeModule:
    """Make what is merged and evaluated."""
    from lwptv_lightning.evaluation import MergeModule, files_module, is_class_path, made_of

    model = values["model"]
    if is_whole(values):
        return made_of("model", model, MergeModule, "a MergeModule", own_errors=True)  # type: ignore[no-any-return]
    given = {name: values[name] for name in MODEL_KEYS[2:] if values.get(name) is not None}
    heads = given.get("heads")
    if isinstance(heads, Mapping):
        given["heads"] = {
            name: made_of(f"heads.{name}", head, _module_class(), "a module of torch") if is_class_path(head) else head
            for name, head in heads.items()
        }
    if "metric" in given:
        given["metric"] = _metric(given["metric"])
    return files_module(make_model(model, values.get("model_arguments") or {}), **given)


def _module_class() -> Any:
    from torch import nn

    return nn.Module


def _metric(value: Mapping[str, Any]) -> Any:
    from torchmetrics import Metric, MetricCollection

    from lwptv_lightning.evaluation import is_class_path, made_of

    kinds: Any = (Metric, MetricCollection)
    if is_class_path(value):
        return made_of("metric", value, kinds, "a metric of torchmetrics")
    for name, each in value.items():
        if not is_class_path(each):
            raise ConfigurationError(f"metric.{name}", f"expected {{class_path: ...}} of a metric, not {shown(each)}.")
    return {name: made_of(f"metric.{name}", each, kinds, "a metric of torchmetrics") for name, each in value.items()}


def make_model(model: Any, arguments: Mapping[str, Any]) -> nn.Module:
    """Make the architecture: a model of timm by its name, or what a ``class_path`` names.

    Raises:
        ConfigurationError: There is no such model, or it takes no such arguments.
    """
    import timm

    from lwptv_lightning.evaluation import made_of

    if isinstance(model, Mapping):
        own = model.get("init_args") or {}
        if arguments and isinstance(own, Mapping):
            model = {**model, "init_args": {**own, **arguments}}
        return made_of("model", model, _module_class(), "a module of torch")  # type: ignore[no-any-return]
    if fixed := [name for name in _FIXED if name in arguments]:
        raise ConfigurationError(
            f"model_arguments.{fixed[0]}", "it cannot be given, since the weights come from the checkpoints."
        )
    if not model.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model.partition(".")[0]):
        raise ConfigurationError("model", f"timm has no model {shown(model)}.{nearest(model, timm.list_models())}")
    try:
        return timm.create_model(model, pretrained=False, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if found is None or found[1] not in arguments:
            raise ConfigurationError("model_arguments", f"{model}: {error}.") from error
        hint = nearest(found[1], _accepted(model))
        raise ConfigurationError(f"model_arguments.{found[1]}", f"{model} takes no such argument.{hint}") from error
    except Exception as error:  # what a model makes of its arguments may be anything
        key = "model_arguments" if arguments else "model"
        raise ConfigurationError(key, f"{model}: {type(error).__name__}: {error}") from error


def _accepted(model: str) -> list[str]:
    """Return the names of what a timm model is built with, for hints."""
    import timm

    names = ["num_classes", "in_chans", "img_size", "drop_rate", "global_pool"]
    return [*names, *inspect.signature(type(timm.create_model(model, pretrained=False)).__init__).parameters]


def make_suite(values: Mapping[str, Any], module: MergeModule) -> EvaluationSuite:
    """Make the sets, and prepare their images for the module's model."""
    from lightning.pytorch import LightningDataModule

    from lwptv_lightning.evaluation import as_suite, image_suite, is_class_path, made_of

    data = values["data"]
    if is_class_path(data):
        expected = "a LightningDataModule, such as an EvaluationSuite"
        made = made_of("data", data, LightningDataModule, expected, own_errors=is_whole(values))
        return as_suite("data", made)
    given = {name: value for name, value in data.items() if value is not None}
    return image_suite(module, given.pop("id", {}), given.pop("ood", None), given.pop("validation", None), **given)


def make_trainer(make: Callable[[], Any]) -> Any:
    """Make a trainer; what Lightning cannot take is told by its key.

    Raises:
        ConfigurationError: There is no such accelerator or strategy, or a number is out of its range.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.accelerators import AcceleratorRegistry
    from lightning.pytorch.strategies import StrategyRegistry
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        return make()
    except (MisconfigurationException, TypeError, ValueError) as error:
        problem = " ".join(str(error).split())
        known: Mapping[str, Any] = {
            "accelerator": AcceleratorRegistry.available_accelerators(),
            "strategy": StrategyRegistry.available_strategies(),
        }
        if (found := re.search(r"`(accelerator|strategy)='([^']*)'`", problem)) is not None:
            key, value = found.groups()
            names = ["auto", *known[key]]
            hint = nearest(value, names) or f" Known: {', '.join(names)}."
            raise ConfigurationError(f"trainer.{key}", f"Lightning has no {key} {value!r}.{hint}") from error
        name = next((each for each in inspect.signature(Trainer).parameters if re.search(rf"\b{each}\b", problem)), "")
        raise ConfigurationError(f"trainer.{name}" if name else "trainer", problem) from error


def _is_importable(path: str) -> bool:
    from lwptv_lightning.evaluation import named_object

    if not re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", path):
        return False
    try:
        named_object("model", path)
    except ConfigurationError:
        return False
    return True
