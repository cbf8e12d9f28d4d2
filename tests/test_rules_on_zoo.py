"""The benchmark of rules and modifiers on the zoo: what it measures, how it chooses, and what it says of that."""

import importlib
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from lwptv_lightning import MergeRecipe
from lwptv_lightning.modifiers import CALIBRATIONS, REWEIGHTINGS, SUBSPACES
from lwptv_lightning.rules import RULES
from lwptv_lightning.search import SweepResult

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """``script(name)``: a module of the benchmarks."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))


def test_every_rule_and_every_modifier_is_measured(script):
    rows = list(script("zoo_rows").rows(sorted(RULES)))
    assert {(row.rule, bool(row.ratio)) for row in rows} >= {(rule, pruned) for rule in RULES for pruned in (0, 1)}
    recipes = [row.recipe(settings, 0.5) for row in rows for settings in row.settings]
    used = {each.name for recipe in recipes for each in (recipe.reweight, recipe.subspace, recipe.calibrate) if each}
    assert used == {*REWEIGHTINGS, *SUBSPACES, *CALIBRATIONS}


def test_only_what_is_registered_has_hyper_parameters(script):
    rows = script("zoo_rows")
    assert set(rows.FORMS) <= set(RULES)
    assert set(rows.MODIFIERS) <= {*REWEIGHTINGS, *SUBSPACES, *CALIBRATIONS}


def test_no_two_rows_have_the_same_name(script):
    names = [row.name for row in script("zoo_rows").rows(sorted(RULES))]
    assert len(names) == len(set(names))


def test_a_modifier_is_tuned_beside_what_was_chosen_for_the_rule(script):
    rows = script("zoo_rows")
    chosen = MergeRecipe({"name": "ties", "density": 0.4}, scale=0.7)
    found = {row.modifier: row.beside(chosen, (("rule.density", 0.4),)) for row in rows.rows(["ties"]) if row.modifier}
    calibrated = found["SVC"].recipe((("calibrate.alpha", 0.5),), 2.0)
    assert (calibrated.rule.density, calibrated.effective_scale) == (0.4, 0.7)
    assert (calibrated.calibrate.alpha, calibrated.calibrate.scale, found["SVC"].scale_of(calibrated)) == (
        0.5,
        2.0,
        2.0,
    )
    reweighted = found["MonoSoup"].recipe((), 2.0)
    assert (reweighted.rule.density, reweighted.effective_scale, reweighted.reweight.name) == (0.4, 2.0, "monosoup")
    assert found["KnOTS"].recipe((("rule.density", 0.8),)).rule.density == 0.8


def measured(peaks):
    """Return what evaluates recipes whose average falls off from the scale that is best for their density."""

    def measure(recipes):
        def share(recipe):
            best, top = peaks[recipe.rule.density]
            return top - 0.1 * abs(math.log2(recipe.scale / best if recipe.scale else 1 / best))

        correct = torch.stack([torch.arange(10_000) < 10_000 * share(each) for each in recipes.values()])
        scales = {name: recipe.effective_scale for name, recipe in recipes.items()}
        return SweepResult(tuple(recipes), {"id/a": correct}, {}, scales)

    return measure


QUIET = {"told": lambda told: None}


@pytest.mark.parametrize("best", [0.06, 0.7, 1.0, 7.0])
def test_the_best_coefficient_is_found_to_an_eighth_of_an_octave_however_far_it_is(script, best):
    tuning, rows = script("zoo_tuning"), script("zoo_rows")
    row, grid = rows.Row("ties", grid={"rule.density": (0.1, 0.2)}), tuning.Grid()
    measure = measured({0.1: (1.0, 0.8), 0.2: (best, 0.9), 0.141: (1.0, 0.0), 0.283: (1.0, 0.0)})
    (tuned,) = tuning.tune(measure, [row], grid, **QUIET).values()
    assert tuned.chosen.settings == (("rule.density", 0.2),)
    assert abs(math.log2(tuned.chosen.factor / best)) <= 1 / 8 + 1e-9
    (finer,) = tuning.refine(measure, {row: tuned}, grid, **QUIET).values()
    assert abs(math.log2(finer.chosen.factor / best)) <= 1 / 16 + 1e-9
    assert {settings for settings, _ in finer.outcomes} - set(row.settings) == {
        (("rule.density", 0.141),),
        (("rule.density", 0.283),),
    }


def test_hyper_parameters_that_come_close_are_tried_between_octaves(script):
    tuning, rows = script("zoo_tuning"), script("zoo_rows")
    row = rows.Row("ties", grid={"rule.density": (0.1, 0.2, 0.4)})
    measure = measured({0.1: (1.0, 0.8), 0.2: (math.sqrt(2), 0.84), 0.4: (1.0, 0.7)})
    (tuned,) = tuning.tune(measure, [row], tuning.Grid(), **QUIET).values()
    # In octaves the first is better, by 0.01; what lies between them shows the second one to be.
    assert tuned.chosen == ((("rule.density", 0.2),), 4)
    assert {settings[0][1] for settings, step in tuned.outcomes if step % 8} == {0.1, 0.2}


def test_a_point_beyond_what_a_rule_takes_is_left_out(script):
    tuning, rows = script("zoo_tuning"), script("zoo_rows")
    row = rows.Row("ties", grid={"rule.density": (0.4, 0.8)})
    (tuned,) = tuning.tune(measured({0.4: (1, 0.5), 0.8: (1, 0.9)}), [row], tuning.Grid(), **QUIET).values()
    finer = {settings[0][1] for settings, _ in tuning.finer_points(tuned, tuning.Grid())}
    assert finer == {0.8, 0.566}  # and not 1.13


@pytest.fixture(scope="module")
def run(script):
    """Measures `simple_average`, with and without SVC, in small; returns the lines, and what was read and merged."""
    main, rows, subject = script("rules_on_zoo"), script("zoo_rows"), script("zoo_subject")
    with pytest.MonkeyPatch.context() as patch:
        form = rows.Form(
            "SVC", grid={"calibrate.alpha": (0.2, 1.0)}, rules=("simple_average",), scale="calibrate.scale"
        )
        patch.setattr(rows, "MODIFIERS", dict.fromkeys(rows.MODIFIERS, ()) | {"svc": (form,)})
        loaders, sweep = subject.zoo.loaders, subject.sweep
        happened = []

        def read(split, *given, **named):
            happened.append(split)
            return loaders(split, *given, **named)

        def measure(*given, **named):
            result = sweep(*given, **named)
            happened.append(dict(result.seconds))
            return result

        patch.setattr(subject.zoo, "loaders", read)
        patch.setattr(subject, "sweep", measure)

        def run(folder, *arguments):
            happened.clear()
            main.main(["--small", "--out", str(folder), "--store", str(folder / "store"), *arguments])
            return script("zoo_lines").read(folder, {}), list(happened)

        yield run


@pytest.fixture(scope="module")
def once(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, *run(folder, "--rules", "simple_average")


def choices_and_sizes(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_test_images_are_read_once_all_choices_are_made(once):
    _, lines, happened = once
    splits = [each for each in happened if isinstance(each, str)]
    assert set(splits) == {"validation", "test"}
    assert splits.index("test") == splits.count("validation")
    assert all(line["validation id"] for line in lines if line["rule"] != "base")


def test_a_second_run_merges_nothing_and_ends_with_the_same_lines(run, once):
    folder, lines, first = once
    again, happened = run(folder, "--rules", "simple_average")
    assert choices_and_sizes(again) == choices_and_sizes(lines)
    # What is served from the store has the seconds of the merge that was.
    assert [each for each in happened if isinstance(each, dict)] == [each for each in first if isinstance(each, dict)]


def test_figures_of_near_and_far_sets_stand_apart_with_intervals(once, script):
    _, lines, _ = once
    found = {tuple(line[name] for name in ("rule", "modifier", "pruned")): line for line in lines}
    assert set(found) == {("base", "", "0")} | {
        ("simple_average", modifier, pruned) for modifier in ("", "SVC") for pruned in ("0", "0.5")
    }
    for (rule, modifier, pruned), line in found.items():
        own = rule != "base" and (modifier, pruned) != ("", "0")
        for domain in script("zoo_lines").DOMAINS:
            assert 0 <= float(line[domain]) <= 100
            for what, known in (
                ("minus task arithmetic", True),
                ("minus its own", own),
                ("finer minus it", pruned == "0" and rule != "base"),
            ):
                ends = [line[f"{domain} {what}{end}"] for end in (" low", "", " high")]
                assert (sorted(map(float, ends)) == list(map(float, ends))) if known else ends == [""] * 3
    own = float(found["simple_average", "SVC", "0"]["ood/near"]) - float(found["simple_average", "", "0"]["ood/near"])
    assert float(found["simple_average", "SVC", "0"]["ood/near minus its own"]) == pytest.approx(own, abs=2e-3)


def test_rules_that_are_measured_anew_leave_the_others_lines(run, once, script, tmp_path):
    shutil.copy(once[0] / "benchmark.csv", tmp_path)
    before = script("zoo_lines").read(tmp_path, {})
    after, _ = run(tmp_path, "--rules", "magmax")
    kept, new = ([line for line in after if line["rule"] in names] for names in (["simple_average"], ["magmax"]))
    assert kept == [line for line in before if line["rule"] != "base"]
    assert [line["pruned"] for line in new] == ["0", "0.5"]
    assert "`magmax`" in (tmp_path / "benchmark.md").read_text()


def test_lines_of_other_numbers_of_images_are_refused_before_anything_is_measured(run, once, script):
    folder, _, _ = once
    with pytest.raises(SystemExit, match="has figures of 6 test images, not 5"):
        script("rules_on_zoo").main(["--small", "--size", "5", "--rules", "magmax", "--out", str(folder)])


def test_lines_of_an_earlier_form_are_refused(script, tmp_path):
    (tmp_path / "benchmark.csv").write_text("rule,pruned\nties,0\n")
    with pytest.raises(SystemExit, match="has no column 'form': measure all rules"):
        script("zoo_lines").read(tmp_path, {})


def test_the_page_says_which_intervals_leave_zero_out(script):
    page = script("zoo_page")
    line = {"rule": "ties", "form": "", "modifier": "", "pruned": "0"}
    ends = {"better": (0.2, 0.9), "worse": (-3, -1), "unknown": (-1, 1)}
    lines = [
        line
        | {"rule": rule}
        | {
            f"{domain} minus task arithmetic{end}": value
            for domain in page.DOMAINS
            for end, value in zip(("", " low", " high"), (str(low), str(low), str(high)), strict=True)
        }
        for rule, (low, high) in ends.items()
    ]
    told = page._signs(lines, page.REFERENCE).splitlines()
    assert told[0] == "- ID: above zero for `better`; below zero for `worse`; neither for the other 1 of 3."
    assert len(told) == 3
