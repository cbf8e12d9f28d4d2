"""The list of modifiers says something of each, and in which order they act."""

from lwptv_lightning.modifiers import CALIBRATIONS, REWEIGHTINGS, SUBSPACES, modifier_entries, modifiers_markdown
from lwptv_lightning.recipe import MODIFIERS


def test_every_modifier_has_a_summary_a_paper_and_ranges():
    entries = modifier_entries()
    assert [entry.name for entry in entries] == [*sorted(REWEIGHTINGS), *sorted(SUBSPACES), *sorted(CALIBRATIONS)]
    for entry in entries:
        assert entry.field in MODIFIERS
        assert entry.summary.rstrip(".")
        assert entry.paper.startswith("https://")
        assert all(" = " in parameter and " in " in parameter for parameter in entry.parameters)


def test_the_page_has_every_modifier_and_the_place_of_each_field():
    page = modifiers_markdown()
    assert all(f"[`{entry.name}`]({entry.paper})" in page for entry in modifier_entries())
    order = page.partition("### The order")[2]
    places = [order.index(f"`{field}`") for field in (*MODIFIERS, "layer_scaling")]
    assert places == sorted(places)


def test_classes_of_modifiers_are_public_names():
    import lwptv_lightning

    registered = [*REWEIGHTINGS.values(), *SUBSPACES.values(), *CALIBRATIONS.values()]
    assert all(getattr(lwptv_lightning, cls.__name__) is cls for cls in registered)
