"""The study's scripts, which import each other by the names of their files."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "examples" / "study"


@contextmanager
def study_scripts() -> Iterator[Callable[[str], ModuleType]]:
    """Give what imports a script by its name, and forget the scripts afterwards."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    held = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = before
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(held)
