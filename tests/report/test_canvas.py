import io
import xml.etree.ElementTree as ElementTree

import matplotlib
from PIL import Image

from lwptv_lightning.report.canvas import Drawing, add_legend, arrange, csv_of, drawing, listed, new_figure, some_labels


def drawn():
    with drawing():
        figure = new_figure(3)
        axes = figure.subplots()
        (line,) = axes.plot([0, 1], [0, 1])
        add_legend(figure, [("_hidden $x$", line)])
        arrange(figure)
    return Drawing("a", "A", "alt", "caption", "model\n", figure)


def test_the_same_figure_has_the_same_bytes_whatever_is_set_for_others():
    first = drawn()
    with matplotlib.rc_context({"font.size": 20, "savefig.dpi": 30, "svg.hashsalt": None, "axes.facecolor": "red"}):
        second = drawn()
        assert first.svg() == second.svg()
        assert first.png() == second.png()
        assert matplotlib.rcParams["font.size"] == 20
    assert "_hidden $x$" in first.svg()


def test_a_figure_is_well_formed_and_has_no_date():
    made = drawn()
    ElementTree.fromstring(made.svg())
    assert "<metadata>" not in made.svg()
    picture = made.picture()
    assert picture.size == (922, 288)
    assert picture.light != picture.dark
    with Image.open(io.BytesIO(made.png())) as image:
        assert image.info.keys() <= {"dpi"}


def test_a_long_figure_is_bounded():
    with drawing():
        figure = new_figure(1e5)
    figure.subplots()
    with Image.open(io.BytesIO(Drawing("a", "", "", "", "", figure).png())) as image:
        assert max(image.size) <= 12_000


def test_text_and_data():
    assert some_labels([f"{number}" for number in range(100)], 10)[0] == list(range(0, 100, 10))
    assert some_labels([], 10) == ([], [])
    assert listed(["a", "b", "c"], 2) == "a; b; and 1 more"
    assert csv_of(["model"], [["=1+1"], ["a,b"]]) == 'model\n\'=1+1\n"a,b"\n'
