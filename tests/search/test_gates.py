import pytest
import torch
from _helpers.swept import small_loaders, small_module, small_samples, validated
from lightning.pytorch import Trainer

from lwptv_lightning import LayerGates, MergeRecipe, merge
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import Gates, sweep

FEW = {"rule": "task_arithmetic", "steps": 3, "images": 12, "batch_size": 6}


def test_gates_are_what_layer_gates_learn_and_learnt_once(make_trainer, monkeypatch):
    fits = []
    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda *given, **named: fits.append(1) or fit(*given, **named))
    loaders, samples, module = small_loaders(), small_samples(), small_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    candidates = {f"{scale}": Gates(**FEW, scale=scale) for scale in (0.5, 1.0)}
    found = sweep(make_trainer(), module, candidates | {"plain": "ties"}, loaders, samples=samples)
    assert len(fits) == 1
    gates = LayerGates(small_module(), "task_arithmetic", images=12, batch_size=6)
    make_trainer(max_steps=3).fit(gates, samples)
    for name, candidate in candidates.items():
        alone = validated(make_trainer(), small_module(gates.recipe().replace(scale=candidate.scale)), loaders)
        assert found.figures(name) == pytest.approx(alone, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_scale_takes_less_of_all_that_was_learnt_also_of_what_is_calibrated():
    module = small_module()
    row = dict.fromkeys(LayerGates(module).layers.names, 0.5)
    learnt = MergeRecipe(
        "task_arithmetic", 1.0, prune_on="parts", coefficients=dict.fromkeys(module.vectors.tasks, row)
    )
    calibrated = learnt.replace(calibrate="svc")
    base = {name: module.vectors.base(name) for name in module.vectors.names}
    for recipe in (learnt, calibrated):
        whole, half = (merge(module.vectors, Gates(scale=scale).scaled(recipe)) for scale in (1.0, 0.5))
        for name, tensor in half.items():
            if name in base:
                torch.testing.assert_close(tensor - base[name], 0.5 * (whole[name] - base[name]))
    own = Gates(modifiers={"calibrate": "svc"}).of(module)
    assert own.hparams["modifiers"]["calibrate"]["name"] == "svc"
    assert "modifiers" not in Gates().of(module).hparams
    with pytest.raises(ValueError, match="checkpoint is of the modifiers"):
        own.set_extra_state(Gates().of(module).get_extra_state())


def test_what_does_not_fit_is_named_before_anything_is_learnt(make_trainer):
    module, loaders, samples = small_module(), small_loaders(), small_samples()

    def run(gates, samples=samples):
        sweep(make_trainer(), module, {"plain": "ties", "mine": gates}, loaders, samples=samples)

    with pytest.raises(ValueError, match=r"candidate 'mine': gates are learnt on samples=\.\.\., and none are given"):
        run(Gates(), None)
    with pytest.raises(ValueError, match="candidate 'mine': calibrate='svc' cannot stand beside rule 'iso_c'"):
        run(Gates(rule="iso_c", modifiers={"calibrate": "svc"}))
    with pytest.raises(UnknownNameError, match="candidate 'mine': unknown modifier 'calibrates'"):
        run(Gates(modifiers={"calibrates": "svc"}))
    with pytest.raises(ValueError, match="candidate 'mine': task 'b' has no loader 'id/b'"):
        run(Gates(), {"id/a": samples["id/a"]})
    with pytest.raises(ValueError, match="candidate 'mine': prune_on='parts' needs a rule that is a sum"):
        run(Gates(rule="wudi"))
    with pytest.raises(ValueError, match="candidate 'mine': lr must be above 0"):
        run(Gates(lr=0))
    with pytest.raises(UnknownNameError, match="candidate 'mine': .*Did you mean 'tsv_m'"):
        run(Gates(rule="tsv_n"))


def test_wrong_numbers():
    with pytest.raises(ValueError, match="scale"):
        Gates(scale=float("nan"))
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        Gates(steps=0)
