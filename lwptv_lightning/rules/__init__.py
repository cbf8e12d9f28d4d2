"""Merging rules, one per file; each registers itself under its name.

`get_rule` gives a rule's class by its registered name; the classes are attributes of this package too. A new file
here is found, tested, offered on the command line and listed in the docs without any other edit.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lwptv_lightning.engine import DataStatistics
from lwptv_lightning.rules._base import RULES, MergeContext, MergeRule, get_rule, make_rule, merge_rule
from lwptv_lightning.rules._catalogue import RuleEntry, rule_entries, rules_markdown
from lwptv_lightning.rules._running_statistics import RunningStatistics
from lwptv_lightning.rules._subspace import InSubspace
from lwptv_lightning.task_vectors import running_statistics

__all__ = ["RULES", "DataStatistics", "MergeContext", "MergeRule", "get_rule", "make_rule", "merge_rule"]

for _module in iter_modules(__path__):
    if not _module.name.startswith("_"):
        import_module(f"{__name__}.{_module.name}")

_CLASSES = {rule.__name__: rule for rule in RULES.values()}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_CLASSES})
