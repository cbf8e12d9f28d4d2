"""Whatever is printed arrives, on any stream."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lwptv_lightning.report import print_table, print_text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_go_to_a_stream_of_any_encoding(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=stream, width=200)
    table = Table("name")
    table.add_row(Text("中文 \ud800"))
    print_table(table, console)
    print_text("[/x] 中文 \ud800\nsecond", console)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    chinese = "中文" if encoding == "utf-8" else r"\u4e2d\u6587"
    assert shown.endswith(f"[/x] {chinese} \\ud800\nsecond\n")
    assert shown.count(f"{chinese} \\ud800") == 2


def test_text_is_no_markup_and_no_escape():
    console = Console(file=io.StringIO(), width=200)
    print_text("[bold]a[/bold] :smile: \x1b[2J\r", console)
    assert console.file.getvalue() == "[bold]a[/bold] :smile: \\x1b[2J\\r\n"
