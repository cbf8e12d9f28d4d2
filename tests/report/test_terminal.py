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


def test_what_finds_no_room_follows_in_blocks_with_short_headings():
    names = [f"a_task_with_a_long_name_{number}" for number in range(14)]
    table = Table("", title="Cosines", caption="the end")
    for name in names:
        table.add_column(Text(name), justify="right")
    for row, name in enumerate(names):
        table.add_row(name, *(f"{row}.{column:02}" for column in range(14)))
    stream = io.StringIO()
    print_table(table, Console(file=stream))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert all(f" {row}.{column:02} " in text for row in range(14) for column in range(14))
    assert text.count("Cosines") == text.count("the end") == 1
    assert text.count("a_tas..me_13") == 1
    assert text.count("a_task_with_a_long_name_13 ") == text.count("━┓") == 4
    print_table(table, Console(file=stream), wide=True)
    assert max(map(len, stream.getvalue().splitlines())) > 300


def test_headings_that_would_be_alike_stay():
    table = Table("")
    for middle in "abc":
        table.add_column(Text(f"the same beginning {middle} and the same end"))
    table.add_row(*"wxyz")
    stream = io.StringIO()
    print_table(table, Console(file=stream))
    words = stream.getvalue().replace("┃", " ").split()
    assert {"a", "b", "c", "x", "y", "z"} <= set(words) | set(stream.getvalue().replace("│", " ").split())
