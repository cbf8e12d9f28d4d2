"""The scripts of an example's folder, which import each other by the names of their files."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def example_scripts(example: str) -> Iterator[Callable[[str], ModuleType]]:
    """Give what imports a script of an example by its name, and forget the scripts afterwards."""
    folder = EXAMPLES / example
    names = [path.stem for path in folder.glob("*.py")]
    held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(held)
