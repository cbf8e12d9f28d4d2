import torch
from matplotlib.figure import Figure
from PIL import Image

from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import PruningPlan
from lwptv_lightning.report import ResultRow, plot_id_ood, plot_saliency
from lwptv_lightning.report.pictures import _add_legend, _drawable
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


def test_letters_that_no_font_has_are_written_as_escapes():
    assert _drawable("Ωμέγα $5_x") == "Ωμέγα $5_x"
    assert _drawable("a中\U0001f600") in ("a中\U0001f600", "a\\u4e2d\\U0001f600", "a\\u4e2d\U0001f600")
    names = ["_hidden", "$x$", "$", "a|b", "中"]
    axes = Figure().subplots()
    points = [axes.scatter(0, 0) for _ in names]
    _add_legend(axes, list(zip(names, points, strict=True)))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(map(_drawable, names))
