import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lwptv_lightning import rules

PACKAGE = Path(__file__).parents[1] / "lwptv_lightning"
LEVELS = (
    ("registry", "functional", "files"),
    ("checkpoints", "layers"),
    ("task_vectors", "libraries"),
    ("engine",),
    ("saliency", "rules", "modifiers"),
    ("recipe",),
    ("merging",),
    ("report", "inspection", "evaluation"),
    ("learning", "sharing"),
    ("search",),
    ("callbacks", "zoo"),
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
        _docstring, *rest, names = ast.parse((PACKAGE / f"{name}.py").read_text()).body
        assert all(isinstance(node, ast.ImportFrom) for node in rest)
        assert ast.unparse(names).startswith("__all__ = ")


def test_there_are_at_most_twelve_levels():
    assert len(LEVELS) <= 12


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_rooms_import_from_rooms_above_them_through_the_door(path):
    own = room_of(path)
    for module, name in imported(path):
        package, _, place = module.partition(".")
        room = place.partition(".")[0] or name
        if package != "lwptv_lightning" or room == "__version__" or room == own:
            continue
        assert room in LEVEL_OF, f"{module}.{name} stands in no room"
        assert LEVEL_OF[room] < LEVEL_OF[own], f"{own} imports {module}.{name}, which is not above it"
        assert place in (room, ""), f"{module} is inside of {room}; import {name} from the room"
        assert not name.startswith("_"), f"{name} is private to {room}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_the_core_is_plain_torch(path):
    users = {module for module, _ in imported(path) if module.partition(".")[0] in ("lightning", "pytorch_lightning")}
    assert not users or room_of(path) in USERS_OF_LIGHTNING


LIGHTNINGS_OWN = PACKAGE / "evaluation" / "lightning.py"


def private(name):
    return name.startswith("_") and not name.endswith("__")


@pytest.fixture(scope="module")
def lightnings_names():
    """What trainers, modules, data modules and callbacks have that is private to Lightning."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
    from torch import nn

    torchs = {*vars(nn.Module()), *dir(nn.Module)}
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, barebones=True)
    owners = (trainer, LightningModule(), LightningDataModule(), Callback())
    return {name for owner in owners for name in dir(owner) if private(name)} - torchs - {"_abc_impl"}


def privates_of_lightning(source, names):
    """Yield what a file touches that is private to Lightning: by import, or as an attribute.

    An attribute is Lightning's by its name, unless it is one of ``self`` that the file itself defines, or because a
    trainer or a module of Lightning's stands somewhere before it.
    """
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for full in (f"{module}.{alias.name}".strip(".").split(".") for alias in node.names):
                if full[0] in ("lightning", "pytorch_lightning", "lightning_fabric") and any(map(private, full)):
                    yield ".".join(full)
        elif isinstance(node, ast.Attribute) and private(node.attr):
            before = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node.value)}
            is_own = node.attr in own and ast.unparse(node.value) == "self"
            if (node.attr in names and not is_own) or before & {"trainer", "pl_module", "strategy"}:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            yield from (ast.unparse(node) for part in node.args if getattr(part, "value", None) in names)


@pytest.mark.parametrize(
    "source",
    [
        "from lightning.pytorch.trainer import _x",
        "from lightning.pytorch._private import x",
        "import lightning.pytorch._private",
        "trainer._x",
        "self.trainer.strategy._x.y",
        "pl_module._x()",
        "self._trainer",
        "other._data_connector",
        "getattr(module, '_trainer', None)",
    ],
)
def test_what_is_private_to_lightning_is_found(source, lightnings_names):
    assert list(privates_of_lightning(source, lightnings_names))


OWN = "class Mine:\n def f(self): self._device = 1\n def _run(self): self._run(self._device)"


@pytest.mark.parametrize(
    "source", [OWN, "self._x", "trainer.x", "trainer.__class__", "from torch import _x", "x._modules"]
)
def test_what_is_not_is_let_be(source, lightnings_names):
    assert not list(privates_of_lightning(source, lightnings_names))


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_one_file_touches_what_is_private_to_lightning(path, lightnings_names):
    # The core is plain torch, where such a name is another's.
    names = lightnings_names if room_of(path) in USERS_OF_LIGHTNING else ()
    found = list(privates_of_lightning(path.read_text(), names))
    assert bool(found) == (path == LIGHTNINGS_OWN), found


def test_importing_the_package_loads_neither_torch_nor_lightning():
    heavy = {"torch", "lightning", "timm", "matplotlib", "blake3", "numba"}
    program = f"import sys, lwptv_lightning; print(*{heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""


def test_every_public_name_can_be_imported():
    import lwptv_lightning

    for name in lwptv_lightning.__all__:
        assert getattr(lwptv_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Merges'"):
        lwptv_lightning.Merges  # noqa: B018


def test_every_rule_file_registers_its_rules():
    files = {path.stem for path in (PACKAGE / "rules").glob("*.py") if not path.stem.startswith("_")}
    assert {rule.__module__.rpartition(".")[2] for rule in rules.RULES.values()} == files


def test_names_of_rules_and_of_their_classes_are_unique():
    assert len({rule.__name__ for rule in rules.RULES.values()}) == len(rules.RULES)
    for name, rule in rules.RULES.items():
        assert rule.name == name
        assert getattr(rules, rule.__name__) is rule


# The tests' own house.

TESTS = Path(__file__).parent
TEST_FILES = sorted(TESTS.rglob("*.py"))
TEST_IDS = [str(path.relative_to(TESTS)) for path in TEST_FILES]
INSIDE = {path.stem for path in TESTS.iterdir() if path.is_dir() or path.suffix == ".py"} - {"_helpers"}
"""What stands in the folder of the tests, beside what they may share."""


def imports_of_tests(source):
    """Yield the modules that are of the tests but not of ``_helpers``."""
    for node in ast.walk(ast.parse(source)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            modules = [f"{node.module}.{alias.name}" if node.level == 0 else "test_" for alias in node.names]
        for module in modules:
            root, *inner = module.split(".")
            # Names of a module, such as pytest's or torch's own, are no files of ours.
            if root in INSIDE or any(part.startswith("test_") or part == "conftest" for part in (root, *inner[:-1])):
                yield module


@pytest.mark.parametrize("source", ["import conftest", "from conftest import x", "from rules.test_ties import x"])
def test_an_import_of_a_test_is_found(source):
    assert list(imports_of_tests(source))
    assert not list(imports_of_tests("from _helpers.golden import x"))
    assert not list(imports_of_tests("from torch.testing import assert_close"))


@pytest.mark.parametrize("path", TEST_FILES, ids=TEST_IDS)
def test_no_test_imports_a_test(path):
    assert list(imports_of_tests(path.read_text())) == []


@pytest.mark.parametrize("path", TEST_FILES, ids=TEST_IDS)
def test_what_is_private_to_a_module_is_imported_by_its_own_test_alone(path):
    for module, name in imported(path):
        package, *inside = f"{module}.{name}".split(".")
        hidden = [part for part in inside if private(part)]
        if package == "lwptv_lightning" and hidden:
            assert path.stem in {f"test_{part.lstrip('_')}" for part in inside[:-1]}, f"{module}.{name}"


def test_each_module_has_a_test_of_its_name():
    modules = [path.relative_to(PACKAGE) for path in FILES if path.stem != "__init__"]
    wanted = {str(path.parent / f"test_{path.stem.lstrip('_')}.py") for path in modules}
    assert sorted(wanted - {str(path.relative_to(TESTS)) for path in TEST_FILES}) == []


# What is written down once.

MOST_SIGNATURES = {"device": 8, "dtype": 5, "ranks": 5}
"""In how many public signatures a matter of execution may stand; elsewhere an `Execution` or a recipe carries it."""
LONGEST = 330


def public_functions(body, is_public=True):
    """Yield the public functions, and the methods of public classes with their constructors."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from public_functions(node.body, is_public and not node.name.startswith("_"))
        elif isinstance(node, ast.FunctionDef) and is_public and (node.name == "__init__" or node.name[0] != "_"):
            yield node


def parameters_of(function):
    given = function.args
    return {each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)}


@pytest.mark.parametrize("parameter", MOST_SIGNATURES)
def test_matters_of_execution_stand_in_few_signatures(parameter):
    found = [
        f"{path.relative_to(PACKAGE)}:{function.name}"
        for path in (*PACKAGE.glob("*.py"), *FILES)
        for function in public_functions(ast.parse(path.read_text()).body)
        if parameter
        in {each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
    ]
    assert len(found) <= MOST_SIGNATURES[parameter], found


def test_no_file_is_long():
    long = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}
