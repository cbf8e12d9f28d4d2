from math import nan

from lwptv_lightning.report.lines import draw_changes, draw_curves


def lines(drawing):
    return list(drawing.figure.axes[0].lines)


def test_a_line_for_each_score_in_order_of_the_ratio():
    drawing = draw_curves({"mean_abs": [(0.5, 0.75), (0.0, 0.5)], "nothing": [(0.1, nan)], "random": [(0.5, 0.25)]})
    assert [line.get_xydata().tolist() for line in lines(drawing)] == [[[0, 50], [50, 75]], [[50, 25]]]
    assert "mean_abs: 50.0 at ratio 0, 75.0 at 0.5, highest 75.0 at 0.5" in drawing.alt
    assert drawing.csv == "score,ratio,id/avg\nmean_abs,0.0,0.5\nmean_abs,0.5,0.75\nrandom,0.5,0.25\n"
    assert draw_curves({"nothing": []}) is None


def test_changes_are_in_the_order_of_the_layers():
    drawing = draw_changes({"stem": {"a": 3.0, "b": 0.0}, "head": {"a": 4.0}})
    first, second = lines(drawing)
    assert first.get_ydata().tolist() == [3.0, 4.0]
    assert second.get_ydata()[0] == 0.0
    assert "a: 5 in all, largest 4 in head" in drawing.alt
    assert [label.get_text() for label in drawing.figure.axes[0].get_xticklabels()] == ["stem", "head"]
    assert draw_changes({"stem": {"a": nan}}) is None


def test_more_lines_than_can_be_told_apart_are_in_the_data():
    drawing = draw_curves({f"score{number}": [(0.0, 0.5), (1.0, 0.25)] for number in range(11)})
    assert len(lines(drawing)) == 8
    assert "3 further scores" in drawing.caption
    assert "score10,1.0,0.25" in drawing.csv
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines(drawing)}
    assert len(looks) == 8
