"""What a configuration names by ``class_path`` and ``init_args``, made with its arguments' types."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from typing import Any

from lwptv_lightning.registry import ConfigurationError, nearest, shown

_KEYS = {"class_path", "init_args", "dict_kwargs"}
_STARS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def is_class_path(value: object) -> bool:
    """Tell whether a value names a class or a function to call."""
    return isinstance(value, Mapping) and "class_path" in value


def named_object(key: str, path: object) -> Callable[..., Any]:
    """Import what a dotted path names.

    Raises:
        ConfigurationError: There is no such module, or nothing of that name in it that can be called.

    Example:
        >>> named_object("data.class_path", "torch.nn.Linaer")
        Traceback (most recent call last):
        lwptv_lightning.registry.given.ConfigurationError: data.class_path: the module 'torch.nn' has no 'Linaer'.
        Did you mean 'Linear'?
    """
    if not isinstance(path, str) or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise ConfigurationError(
            key, f"expected the path of a class or function, such as 'package.Name', not {shown(path)}."
        )
    place, _, name = path.rpartition(".")
    found: Any = _imported(key, place)
    try:
        found = getattr(found, name)
    except AttributeError as error:
        raise ConfigurationError(key, f"the module {place!r} has no {name!r}.{nearest(name, _names(found))}") from error
    if not callable(found):
        raise ConfigurationError(key, f"{path!r} is neither a class nor a function.")
    try:
        inspect.signature(found)
    except (TypeError, ValueError):
        raise ConfigurationError(key, f"{path!r} does not say what arguments it takes.") from None
    return found  # type: ignore[no-any-return]


def made_of(
    key: str, value: Mapping[str, Any], kinds: Any = object, expected: str = "", *, own_errors: bool = False
) -> Any:
    """Make what a mapping with ``class_path`` and ``init_args`` names.

    Arguments are brought to the types that their annotations say, be they classes by their own paths; other keys beside
    ``class_path`` count as arguments.

    Args:
        key: Where the mapping stands, for messages.
        value: The mapping.
        kinds: What must come out of it.
        expected: The same in words.
        own_errors: Whether what is raised within is told as it is, without the key.

    Raises:
        ConfigurationError: There is no such class or function, it takes no such arguments, or makes something else.
    """
    maker = named_object(f"{key}.class_path", value["class_path"])
    given = value.get("init_args")
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f"{key}.init_args", f"expected a mapping of argument to value, not {shown(given)}.")
    given = {**(given or {}), **(value.get("dict_kwargs") or {})}
    given |= {name: item for name, item in value.items() if name not in _KEYS}
    made = _called(key, maker, _typed(key, maker, given), own_errors)
    if not isinstance(made, kinds):
        raise ConfigurationError(key, f"{value['class_path']} makes a {type(made).__name__}, expected {expected}.")
    return made


def _names(module: Any) -> list[str]:
    return [*getattr(module, "__all__", ()), *(name for name in dir(module) if not name.startswith("_"))]


def returns(maker: Callable[..., Any], kind: type) -> bool:
    """Tell whether calling something gives an instance of a class, as far as it says so."""
    if inspect.isclass(maker):
        return issubclass(maker, kind)
    said = getattr(maker, "__annotations__", {}).get("return")
    if isinstance(said, str):
        said = getattr(maker, "__globals__", {}).get(said, said)
    return said == kind.__name__ or (inspect.isclass(said) and issubclass(said, kind))


def _imported(key: str, place: str) -> Any:
    """Import a module, or a class in one, whose attribute is meant."""
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        outer, _, inner = place.rpartition(".")
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise ConfigurationError(key, f"importing {place!r} failed: {error}.") from error
        if outer and error.name == place and hasattr(module := _imported(key, outer), inner):
            return getattr(module, inner)
        raise ConfigurationError(
            key,
            f"there is no module {error.name!r}; one of your own is found from the folder it stands in, by PYTHONPATH.",
        ) from error
    except Exception as error:  # a module may raise whatever it likes
        raise ConfigurationError(key, f"importing {place!r} failed: {type(error).__name__}: {error}") from error


def _typed(key: str, maker: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    known = _known(maker, parser)
    others = {name: item for name, item in given.items() if name not in known}
    if others and not _takes_more(maker):
        unknown = next(iter(others))
        hint = nearest(unknown, known) or f" It takes {', '.join(sorted(known)) or 'no arguments'}."
        raise ConfigurationError(f"{key}.init_args.{unknown}", f"{_name(maker)} takes no such argument.{hint}")
    own = {name: item for name, item in given.items() if name in known}
    _require_all(key, maker, given)
    if not own:
        return others
    try:
        parsed = parser.parse_object({"it": own}, defaults=False)
    except (ArgumentError, TypeError, ValueError) as error:
        raise _told(key, str(error)) from error
    made = parser.instantiate_classes(parsed)["it"]
    return {name: made[name] for name in own} | others


def _known(maker: Callable[..., Any], parser: Any = None) -> set[str]:
    """Return the arguments of a class or function, also those that it hands on, as far as they can be told."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False) if parser is None else parser
    add = parser.add_class_arguments if inspect.isclass(maker) else parser.add_function_arguments
    options: dict[str, Any] = {"instantiate": False} if inspect.isclass(maker) else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of annotations that cannot be resolved, whose arguments go as they are
        return {name.partition(".")[2] for name in add(maker, "it", fail_untyped=False, **options)}


def _told(key: str, message: str) -> ConfigurationError:
    from lwptv_lightning.evaluation.typed_values import in_our_words

    place, problem = in_our_words(message)
    return ConfigurationError(f"{key}.init_args{place.removeprefix('it')}", problem)


def _require_all(key: str, maker: Callable[..., Any], given: Mapping[str, Any]) -> None:
    parameters = inspect.signature(maker).parameters.values()
    wanted = [each.name for each in parameters if each.default is each.empty and each.kind not in _STARS]
    if lacking := [name for name in wanted if name not in given]:
        raise ConfigurationError(f"{key}.init_args", f"{_name(maker)} needs {', '.join(map(repr, lacking))}.")


def _takes_more(maker: Callable[..., Any]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(maker).parameters.values())


def _called(key: str, maker: Callable[..., Any], arguments: dict[str, Any], own_errors: bool) -> Any:
    try:
        return maker(**arguments)
    except ConfigurationError:
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        found = re.search(r"[Uu]nexpected keyword arguments?:? ['`](\w+)['`]", str(error))
        if found is None or found[1] not in arguments:
            if own_errors:
                raise
            raise ConfigurationError(key, f"{_name(maker)}: {str(error) or type(error).__name__}") from error
        near = nearest(found[1], {*_known(maker)} - {found[1]})
        raise ConfigurationError(
            f"{key}.init_args.{found[1]}", f"{_name(maker)} takes no such argument.{near}"
        ) from error


def _name(maker: Callable[..., Any]) -> str:
    return getattr(maker, "__name__", type(maker).__name__)


def accepted(path: str) -> list[str]:
    """Return the arguments that a class or function names; none where there is no such."""
    try:
        return list(inspect.signature(named_object("class_path", path)).parameters)
    except (ConfigurationError, TypeError, ValueError):
        return []


def subclasses(name: str) -> list[str]:
    """Return the names of Lightning's callbacks or loggers, for hints."""
    import lightning.pytorch.callbacks
    import lightning.pytorch.loggers

    known = {"Callback": lightning.pytorch.callbacks.__all__, "Logger": lightning.pytorch.loggers.__all__}
    return list(known.get(name, ()))
