import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.report import ResultRow, plot_id_ood, plot_saliency
from lwptv_lightning.report.letters import drawable
from lwptv_lightning.report.pictures import _COLORS, _add_legend, panels_of
from lwptv_lightning.saliency import LayerTable, keep_most_salient

ROWS = [
    ResultRow("base", {"id/a": 0.5, "id/avg": 0.5, "ood/b_c": 0.25, "ood/avg": 0.25}),
    ResultRow("ties", {"id/a": 2 / 3, "id/avg": 2 / 3, "ood/b_c": 1.0, "ood/avg": 1.0}, 1.234, "best"),
]


def test_pictures_are_drawn(tmp_path):
    scores = LayerTable(("a", "b"), ("stem", "head"), torch.ones(2), torch.tensor([[1.0, 2.0], [4.0, 3.0]]))
    plan = PruningPlan(layers_from_names(["stem.w", "head.w"]), scores, keep_most_salient(scores, 0.5))
    named = [ROWS[0], ROWS[1], ResultRow("ties pruned", ROWS[0].figures)]
    pictures = [plot_saliency(plan, tmp_path / "new" / "a.png"), plot_id_ood(named, tmp_path / "b.png", ROWS, ROWS)]
    for path in pictures:
        with Image.open(path) as image:
            assert min(image.size) > 100
            assert len(image.convert("L").getcolors()) > 20


def test_names_in_a_legend_are_all_there():
    names = ["_hidden", "$x$", "$", "a|b", "中"]
    axes = Figure().subplots()
    points = [axes.scatter(0, 0) for _ in names]
    _add_legend(axes, list(zip(names, points, strict=True)))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(map(drawable, names))


def row(name="a", plain=(), **figures):
    named = {key.replace("_", "/"): value for key, value in figures.items()}
    return ResultRow(name, {"id/avg": 0.5, "ood/avg": 0.5, **named}, plain=plain)


GROUPED = {"ood_near_x": 0.1, "ood_near_avg": 0.2, "ood_far_avg": 0.7}


@pytest.mark.parametrize(
    ("rows", "panels"),
    [
        ([row(**GROUPED), row("b", **GROUPED)], ["ood/near", "ood/far"]),
        ([row(**GROUPED), row("b", ood_near_avg=0.5)], ["ood"]),  # not of every model
        ([row(**GROUPED, ood_z=0.5)], ["ood"]),  # a set of no group would be in no panel
        ([row(ood_near_avg=0.5)], ["ood"]),
        ([row(**GROUPED, ood_other_avg=float("nan"))], ["ood"]),
        ([row(**GROUPED, plain={"ood/far/avg"})], ["ood"]),
        ([row(**GROUPED, id_day_avg=0.5, id_night_avg=0.5)], ["ood/near", "ood/far"]),
        ([row(**{f"ood_{number}_avg": 0.5 for number in range(7)})], ["ood"]),
        ([row(**{f"ood_{number}_avg": 0.5 for number in range(5)})], [f"ood/{number}" for number in range(5)]),
    ],
)
def test_groups_have_panels_where_every_model_has_figures_of_all(rows, panels, tmp_path):
    assert panels_of(rows) == panels
    with Image.open(plot_id_ood(rows, tmp_path / "a.png")) as image:
        wide, high = image.size
    assert wide > 1200 if len(panels) > 1 else wide < 1200
    assert high > 1200 if len(panels) > 2 else high < 1200


def test_rules_differ_in_brightness_or_in_shape_too():
    """As printed in grey, or seen by somebody who sees no colour."""
    grey = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in map(to_rgb, _COLORS)]
    assert max(grey) < 0.75  # none is lost on white
    assert len({round(each, 2) for each in grey}) == len(_COLORS)
