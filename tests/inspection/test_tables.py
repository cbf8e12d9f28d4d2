import io

from rich.console import Console

from lwptv_lightning.inspection import check, check_tables, diff, diff_table
from lwptv_lightning.report import print_table


def shown(*tables):
    console = Console(file=io.StringIO(), width=60)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_one_task_is_a_row_and_has_no_cosines(base_state, task_states):
    (table,) = check_tables(check(base_state, {"a": task_states["a"]}))
    assert table.row_count == 1
    assert "Cosines" not in shown(table)


def test_cosines_have_a_row_and_a_column_for_each_task_that_was_read(base_state, task_states):
    findings = check(base_state, task_states)
    table, cosines = check_tables(findings)
    assert table.row_count == cosines.row_count == 3
    assert len(cosines.columns) == 4
    text = shown(table, cosines)
    assert all(f"{value:.2f}" in text for found in findings for value in found.cosines.values())
    assert all(f"{found.norm:.3g}" in text for found in findings)


def test_headers_alone_leave_figures_out(base_state, task_states):
    (table,) = check_tables(check(base_state, task_states, read=False))
    norms = next(column for column in table.columns if column.header == "norm")
    assert list(norms.cells) == ["", "", ""]


def test_a_line_for_each_layer_that_differs_and_a_count_of_the_rest(base_state):
    changed = base_state | {"fc.weight": base_state["fc.weight"] + 1, "gain": base_state["gain"] + 2}
    table = diff_table(diff(base_state, changed))
    assert list(table.columns[0].cells) == ["fc", "gain"]
    assert table.caption == "2 of 4 layers are equal."
    assert "1 of 1" in shown(table)
