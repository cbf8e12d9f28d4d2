import ast
import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_each_test_that_writes_a_row_has_one_and_each_row_its_test():
    writing = {
        f"{path.name}::{function.name}"
        for path in Path(__file__).parent.glob("test_*.py")
        for function in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(function, ast.FunctionDef) and "row" in {argument.arg for argument in function.args.args}
    }
    assert set(re.findall(r"\| `([^`\[]+)[^`]*` \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)) == writing
