import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lwptv_lightning.report.labels import Label, place_labels


@pytest.fixture
def axes():
    figure = Figure(figsize=(5, 5))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    return axes


def boxes(axes):
    renderer = axes.figure.canvas.get_renderer()
    return [text.get_window_extent(renderer) for text in axes.texts]


def test_labels_cover_neither_each_other_nor_points(axes):
    points = [(x, y) for x in (2, 5, 8) for y in (2, 5, 8)]
    assert place_labels(axes, [Label(point, "0.25") for point in points], points) == 9
    found = boxes(axes)
    assert not any(a.overlaps(b) for a in found for b in found if a is not b)
    for x, y in axes.transData.transform(points):
        assert not any(box.contains(x, y) for box in found)


def test_where_there_is_no_room_only_what_is_needed_is_labelled(axes):
    crowd = [(5 + x / 50, 5 + y / 50) for x in range(-6, 7) for y in range(-6, 7)]
    labels = [Label(point, "a label") for point in crowd]
    assert place_labels(axes, labels, crowd) < 20
    before = len(axes.texts)
    assert place_labels(axes, [Label((5, 5), "chosen", needed=True, bold=True)], crowd) == 1
    assert axes.texts[before].get_fontweight() == "bold"


def test_labels_stay_within_the_axes(axes):
    corners = [(0, 0), (0, 10), (10, 0), (10, 10)]
    assert place_labels(axes, [Label(point, "corner") for point in corners], corners) == 4
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes(axes))


def test_nothing_is_labelled_with_nothing(axes):
    assert place_labels(axes, [Label((5, 5), "")], []) == 0
