import os

import pytest

from lwptv_lightning.merging import BaseCard

CARD = """---
license: other
license_name: odd-licence
license_link: LICENSE
pipeline_tag: image-classification
tags: [timm]
---
# A model
"""


def test_what_the_card_says_is_read(tmp_path):
    (tmp_path / "README.md").write_text(CARD.replace("LICENSE", "https://example.org/licence"))
    found = BaseCard.beside(tmp_path)
    assert found.license == "other"
    assert found.license_name == "odd-licence"
    assert found.license_link == "https://example.org/licence"
    assert found.pipeline_tag == "image-classification"
    assert found.name is None


def test_a_base_in_the_hubs_cache_has_its_name_there_and_a_link_to_its_licence(tmp_path):
    folder = tmp_path / "models--owner--my-model" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    found = BaseCard.beside(folder)
    assert found.name == "owner/my-model"
    assert found.license_link == "https://huggingface.co/owner/my-model/blob/main/LICENSE"


def test_a_link_that_leads_nowhere_from_here_is_left_out():
    assert BaseCard.of_text(CARD).license_link is None


@pytest.mark.parametrize("licence", ["[mit]", "mit"])
def test_one_licence_may_stand_in_a_list(licence):
    assert BaseCard.of_text(f"---\nlicense: {licence}\n---\n").license == "mit"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# Prose\n\nlicense: mit\n",
        "---\nlicense: [mit, apache-2.0]\n---\n",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: 3\n---\n",
        "---\nlicense: 'mit\\n# x'\n---\n",
        "---\nlicense: '](javascript:alert(1))'\n---\n",
        "---\nlicense: " + "m" * 1000 + "\n---\n",
        "---\n- mit\n---\n",
        "---\nlicense: !!python/object/apply:os.system [exit]\n---\n",
        "---\n" + "[" * 5000 + "\n---\n",
        "---\nlicense: *unknown\n---\n",
        "---\n\x00\n---\n",
    ],
)
def test_nothing_is_claimed_where_a_card_does_not_say_one_licence(text, caplog):
    assert BaseCard.of_text(text) == BaseCard()
    assert not caplog.records


def test_aliases_that_grow_take_no_time():
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    assert BaseCard.of_text("---\n" + "\n".join(lines) + "\nlicense: mit\n---\n").license in ("mit", None)


@pytest.mark.parametrize("kind", ["folder", "FIFO", "nothing", "bytes"])
def test_what_is_no_card_says_nothing(kind, tmp_path):
    path = tmp_path / "README.md"
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "bytes":
        path.write_bytes(bytes(range(256)))
    assert BaseCard.beside(tmp_path) == BaseCard()
    assert BaseCard.beside(None) == BaseCard()
