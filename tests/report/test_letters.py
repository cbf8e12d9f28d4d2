from lwptv_lightning.report.letters import drawable, drawable_apart


def test_letters_that_no_font_has_are_written_as_escapes():
    assert drawable("Ωμέγα $5_x") == "Ωμέγα $5_x"
    assert drawable("a中\U0001f600") in ("a中\U0001f600", "a\\u4e2d\\U0001f600", "a\\u4e2d\U0001f600")
    assert len(drawable("a" * 500, 30)) <= 30


def test_names_that_would_look_the_same_are_told_apart():
    names = [f"a_name_that_is_far_too_long_{number}_and_ends_as_all_others_do" for number in range(3)]
    assert drawable_apart(names, 20) == ["…0…", "…1…", "…2…"]
    assert drawable_apart(["same", "same"], 20) == ["same", "same"]
    assert drawable_apart([], 20) == []
