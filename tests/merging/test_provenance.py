import torch

from lwptv_lightning import LayerMask, MergeRecipe
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import Merge


def test_a_plan_says_what_its_file_will_say(vectors):
    layers = layers_from_names(vectors.names)
    kept = torch.tensor([[(task, layer) != ("a", "fc") for layer in layers.names] for task in vectors.tasks])
    mask = LayerMask(vectors.tasks, layers.names, kept)
    plan = Merge(vectors, MergeRecipe("ties"), mask=mask).plan()
    provenance = plan.provenance()
    base, tasks = vectors.fingerprints()
    assert (provenance.base, provenance.tasks) == (base, tasks)
    assert MergeRecipe.from_dict(provenance.recipe) == plan.recipe
    assert provenance.scale == 1.0
    assert provenance.mask == {
        "a": ["stem", "head", "gain"],
        "b": ["stem", "fc", "head", "gain"],
        "c": ["stem", "fc", "head", "gain"],
    }
