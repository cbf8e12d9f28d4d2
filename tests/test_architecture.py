import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lwptv_lightning import rules

PACKAGE = Path(__file__).parents[1] / "lwptv_lightning"
# Each imports only from those before it.
ORDER = [
    "registry",
    "choices",
    "hub",
    "checkpoints",
    "fingerprint",
    "lazy_conversion",
    "key_maps",
    "differences",
    "lora",
    "opening",
    "share",
    "transfer",
    "stacks",
    "task_vectors",
    "tracing",
    "layers",
    "layer_scaling",
    "statistics",
    "saliency",
    "pruning",
    "pruned_task_vectors",
    "rules",
    "catalogue",
    "distributed",
    "recipe",
    "combining",
    "memory",
    "merging",
    "data_statistics",
    "writing",
    "gathering",
    "installing",
    "transform",
    "metrics",
    "datamodule",
    "module",
    "sweep",
    "checking",
    "diffing",
    "report",
    "zoo",
    "demo",
    "validate",
    "cli",
    "__main__",
    "callbacks",
]
USERS_OF_LIGHTNING = {"module", "datamodule", "sweep", "zoo", "cli", "demo", "validate", "callbacks"}
FILES = [
    (path, name)
    for name in ORDER
    for path in [PACKAGE / f"{name}.py", *sorted((PACKAGE / name).glob("*.py"))]
    if path.is_file()
]


def imported(path):
    """Yield the full names of what a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place_in_the_order():
    present = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert present - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize(("path", "name"), FILES, ids=[f"{name}/{path.stem}" for path, name in FILES])
def test_imports_point_upwards(path, name):
    for target in imported(path):
        root, _, rest = target.partition(".")
        if root == "lwptv_lightning" and (module := rest.partition(".")[0]) in ORDER:
            lazy_exception = (name, module) == ("module", "callbacks")
            assert ORDER.index(module) <= ORDER.index(name) or lazy_exception, f"{path.name} imports {target}"
        assert root not in ("lightning", "pytorch_lightning") or name in USERS_OF_LIGHTNING, f"{path.name}: {target}"


def test_module_imports_callbacks_inside_one_function_only():
    tree = ast.parse((PACKAGE / "module.py").read_text())
    lazy = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and "lwptv_lightning.callbacks" in ast.unparse(function)
    ]
    assert lazy == ["configure_callbacks"]
    assert not [node for node in tree.body if "lwptv_lightning.callbacks" in ast.unparse(node).split("class ")[0]]


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
