import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lwptv_lightning import rules

PACKAGE = Path(__file__).parents[1] / "lwptv_lightning"
LEVELS = (
    ("registry", "functional"),
    ("checkpoints", "layers"),
    ("task_vectors",),
    ("engine",),
    ("saliency", "rules"),
    ("recipe",),
    ("merging",),
    ("report", "inspection", "evaluation"),
    ("search", "learning", "callbacks"),
    ("zoo",),
    ("cli",),
)
"""Rooms import from those above them alone."""
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
OUTSIDE = {"__init__", "__main__"}
FORWARDERS = {"distributed", "validate"}
"""Modules that users import, which hold nothing but the new place of what was in them."""
USERS_OF_LIGHTNING = {"evaluation", "learning", "search", "callbacks", "zoo", "cli"}
FILES = sorted({*PACKAGE.glob("*/*.py")})
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def imported(path):
    """Yield the module and the name of what a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from ((node.module, alias.name) for alias in node.names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0]


def test_every_module_stands_in_a_room():
    present = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert present - set(LEVEL_OF) == OUTSIDE | FORWARDERS


def test_forwarders_hold_imports_alone():
    for name in FORWARDERS:
        docstring, *rest, names = ast.parse((PACKAGE / f"{name}.py").read_text()).body
        assert all(isinstance(node, ast.ImportFrom) for node in rest)
        assert ast.unparse(names).startswith("__all__ = ")


def test_there_are_at_most_eleven_levels():
    assert len(LEVELS) <= 11


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_rooms_import_from_rooms_above_them_through_the_door(path):
    own = room_of(path)
    for module, name in imported(path):
        package, _, place = module.partition(".")
        room = place.partition(".")[0] or name
        if package != "lwptv_lightning" or room == "__version__" or room == own:
            continue
        if (own, room) == ("evaluation", "callbacks"):
            continue  # until the module owns its merging callback
        assert room in LEVEL_OF, f"{module}.{name} stands in no room"
        assert LEVEL_OF[room] < LEVEL_OF[own], f"{own} imports {module}.{name}, which is not above it"
        assert place in (room, ""), f"{module} is inside of {room}; import {name} from the room"
        assert not name.startswith("_"), f"{name} is private to {room}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_core_is_plain_torch(path):
    users = {module for module, _ in imported(path) if module.partition(".")[0] in ("lightning", "pytorch_lightning")}
    assert not users or room_of(path) in USERS_OF_LIGHTNING


def test_importing_the_package_loads_neither_torch_nor_lightning():
    program = "import sys, lwptv_lightning; print(*{'torch', 'lightning', 'timm', 'matplotlib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_every_public_name_can_be_imported():
    import lwptv_lightning

    for name in lwptv_lightning.__all__:
        assert getattr(lwptv_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Merge'"):
        lwptv_lightning.Merge  # noqa: B018


def test_every_rule_file_registers_its_rules():
    files = {path.stem for path in (PACKAGE / "rules").glob("*.py") if not path.stem.startswith("_")}
    assert {rule.__module__.rpartition(".")[2] for rule in rules.RULES.values()} == files


def test_names_of_rules_and_of_their_classes_are_unique():
    assert len({rule.__name__ for rule in rules.RULES.values()}) == len(rules.RULES)
    for name, rule in rules.RULES.items():
        assert rule.name == name
        assert getattr(rules, rule.__name__) is rule


def test_a_taken_rule_name_is_refused():
    with pytest.raises(ValueError, match="merging rule 'ties' is registered already"):
        rules.merge_rule("ties", paper="")(type("Other", (rules.MergeRule,), {}))
    assert rules.RULES["ties"] is rules.TIES
