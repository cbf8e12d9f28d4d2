import pytest

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.zoo import FAR_SETS, ID_SETS, NEAR_SETS, OOD_SETS, dataset
from lwptv_lightning.zoo.domains import DOMAINS, loader_name, set_alphabet, splits
from lwptv_lightning.zoo.glyphs import ALPHABETS
from lwptv_lightning.zoo.styles import STYLES


def test_no_set_is_in_domain_and_out_of_it():
    assert not set(ID_SETS) & set(OOD_SETS)
    assert set(DOMAINS) | {"digits"} == set(ID_SETS) | set(OOD_SETS)
    assert (*NEAR_SETS, *FAR_SETS) == OOD_SETS


def parts_of(names, part):
    return {getattr(DOMAINS[name], part) for name in names if name in DOMAINS}


def test_no_alphabet_of_a_task_is_seen_out_of_domain_and_no_style_far_from_it():
    for part, outside, known in (("alphabet", OOD_SETS, ALPHABETS), ("style", FAR_SETS, STYLES)):
        seen, unseen = parts_of(ID_SETS, part), parts_of(outside, part)
        assert not seen & unseen
        assert seen | unseen <= set(known)


def test_near_sets_have_each_style_of_a_task_at_its_strength_and_the_alphabets_of_the_far_ones():
    inside, near = ({(DOMAINS[name].style, DOMAINS[name].strength) for name in names} for names in (ID_SETS, NEAR_SETS))
    assert inside == near
    assert parts_of(NEAR_SETS, "alphabet") == parts_of(FAR_SETS, "alphabet") | {"digits"}
    assert all(splits(name) == ("train", "validation", "test") for name in NEAR_SETS)


def test_loaders_are_called_by_domain_and_group():
    names = [loader_name(name) for name in ("maths_dots", "arrows_dots", "arrows_occluded")]
    assert names == ["id/maths_dots", "ood/near/arrows_dots", "ood/far/arrows_occluded"]
    with pytest.raises(UnknownNameError, match="unknown set 'arrows'"):
        loader_name("arrows")


@pytest.mark.parametrize("name", ID_SETS + OOD_SETS)
def test_every_set_has_its_classes_and_its_splits(name):
    assert set_alphabet(name) in {*ALPHABETS, "digits"}
    assert all(len(dataset(name, split, size=2)) == 2 for split in splits(name))


def test_an_unknown_set_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown set 'greek_nois'. Did you mean 'greek_noise'"):
        set_alphabet("greek_nois")
