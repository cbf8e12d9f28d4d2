import pytest

from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.zoo import ID_SETS, OOD_SETS, dataset
from lwptv_lightning.zoo.domains import DOMAINS, set_alphabet, splits
from lwptv_lightning.zoo.glyphs import ALPHABETS
from lwptv_lightning.zoo.styles import STYLES


def test_no_set_is_in_domain_and_out_of_it():
    assert not set(ID_SETS) & set(OOD_SETS)
    assert set(DOMAINS) | {"digits"} == set(ID_SETS) | set(OOD_SETS)


def test_no_alphabet_or_style_of_a_task_is_seen_out_of_domain():
    inside, outside = ([DOMAINS[name] for name in names if name in DOMAINS] for names in (ID_SETS, OOD_SETS))
    for part, known in (("alphabet", ALPHABETS), ("style", STYLES)):
        seen, unseen = ({getattr(domain, part) for domain in domains} for domains in (inside, outside))
        assert not seen & unseen
        assert seen | unseen <= set(known)


@pytest.mark.parametrize("name", ID_SETS + OOD_SETS)
def test_every_set_has_its_classes_and_its_splits(name):
    assert set_alphabet(name) in {*ALPHABETS, "digits"}
    assert all(len(dataset(name, split, size=2)) == 2 for split in splits(name))


def test_an_unknown_set_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown set 'greek_nois'. Did you mean 'greek_noise'"):
        set_alphabet("greek_nois")
