from lwptv_lightning import LiNeS, MergeRecipe
from lwptv_lightning.merging import made_as, unscaled
from lwptv_lightning.modifiers import SVC


def test_recipes_with_one_survey():
    plain = MergeRecipe("ties", ratio=0.5)
    for change in ({"scale": 0.5}, {"layer_scaling": LiNeS()}, {"calibrate": SVC()}):
        assert unscaled(plain.replace(**change)) == plain
    for change in ({"ratio": 0.4}, {"rule": "dare"}, {"dtype": "float64"}, {"reweight": None, "score": "l2"}):
        assert unscaled(plain.replace(**change)) != plain


def test_recipes_with_one_merged_task_vector():
    plain, svc = MergeRecipe("emr"), MergeRecipe("emr", calibrate=SVC())
    assert made_as(plain) == made_as(plain.replace(scale=0.5, layer_scaling=LiNeS()))
    assert made_as(svc) == made_as(svc.replace(calibrate=SVC(scale=0.5), layer_scaling=LiNeS()))
    assert made_as(svc) == made_as(svc.replace(scale=1.0))
    others = (svc.replace(scale=0.5), svc.replace(calibrate=SVC(alpha=0.5)), plain.replace(task="a"), plain)
    assert len({made_as(svc), *map(made_as, others)}) == 5
    assert made_as(plain.replace(task="None")) != made_as(plain)
