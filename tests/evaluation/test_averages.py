import pytest

from lwptv_lightning.evaluation import averages


def test_averages_of_several_metrics_stay_apart():
    figures = {"id/a/top1": 0.2, "id/b/top1": 0.4, "id/a/top2": 0.5, "id/b/top2": 0.7, "ood/c/top1": 0.1}
    assert averages(figures) == pytest.approx({"id/avg/top1": 0.3, "id/avg/top2": 0.6, "ood/avg/top1": 0.1})


def test_normalised_is_the_mean_of_quotients_over_the_sets_with_an_expert():
    figures = {"id/a": 0.4, "id/b": 0.9, "id/c": 0.1, "ood/a": 0.3}
    assert averages(figures, {"a": 0.8, "b": 0.9})["id/normalized"] == pytest.approx((0.4 / 0.8 + 0.9 / 0.9) / 2)
    assert "id/normalized" not in averages(figures, {"z": 0.8})


SETS = {"id/a": 0.5, "ood/near/x": 0.1, "ood/far/x": 0.5, "ood/near/y": 0.3, "ood/alone": 0.7, "id/day/a": 0.9}


def test_each_group_has_an_average_and_each_domain_one_over_all_its_sets():
    found = averages(SETS, loaders=SETS)
    wanted = {"id/day/avg": 0.9, "id/avg": 0.7, "ood/near/avg": 0.2, "ood/far/avg": 0.5, "ood/avg": 0.4}
    assert found == pytest.approx(wanted)
    assert list(found) == list(wanted)


def test_parts_of_metrics_are_averaged_over_groups_that_all_have_them():
    parts = {f"{name}/top1": figure for name, figure in SETS.items()} | {"ood/near/x/f1": 0.5, "ood/far/x/f1": 0.1}
    found = averages(parts, loaders=SETS)
    assert found["ood/near/avg/top1"] == pytest.approx(0.2)
    assert found["ood/avg/top1"] == pytest.approx(0.4)
    assert {name for name in found if name.endswith("f1")} == {"ood/far/avg/f1"}


def test_a_group_of_one_kind_has_an_average_though_the_domain_has_none():
    kinds = dict.fromkeys(SETS, "accuracy") | {"ood/far/x": "f1"}
    assert averages(SETS, loaders=SETS, kinds=kinds).keys() == {"id/day/avg", "id/avg", "ood/near/avg", "ood/far/avg"}


def test_experts_are_found_by_the_longer_name_first():
    figures = {"id/day/a": 0.4, "id/night/a": 0.3, "ood/day/a": 0.1}
    found = averages(figures, {"a": 0.5, "day/a": 0.8}, loaders=figures)
    assert found["id/normalized"] == pytest.approx((0.4 / 0.8 + 0.3 / 0.5) / 2)
