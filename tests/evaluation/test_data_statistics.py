"""Fisher information and Gram matrices against loops over examples."""

import torch
from _helpers.golden import golden_file, golden_output
from torch import Tensor, nn

from lwptv_lightning.evaluation import fisher_diagonal, input_grams


def two_layers(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    hidden = torch.relu(inputs @ parameters["fc1.weight"].T + parameters["fc1.bias"])
    return hidden @ parameters["fc2.weight"].T + parameters["fc2.bias"]


def test_fisher_matches_the_reference() -> None:
    given = golden_file("inputs_adamerging")
    parameters = {name.removeprefix("base::"): value for name, value in given.items() if name.startswith("base::")}
    sums = fisher_diagonal(two_layers, parameters, given["X"].reshape(-1, 12)[:12])
    for name, expected in golden_output("fisher_estimate.exact").items():
        torch.testing.assert_close(sums[name] / 12, expected, atol=1e-6, rtol=1e-5)


def test_fisher_equals_a_loop_over_examples_and_classes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    inputs = torch.randn(5, 3)
    expected = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for example in inputs:
        for label in range(3):
            model.zero_grad()
            log_probability = model(example).log_softmax(0)[label]
            log_probability.backward()
            for name, parameter in model.named_parameters():
                expected[name] += log_probability.exp().detach() * parameter.grad**2
    with torch.inference_mode():
        sums = fisher_diagonal(
            lambda parameters, x: torch.func.functional_call(model, parameters, (x,)),
            dict(model.named_parameters()),
            inputs.clone(),
        )
    for name, value in expected.items():
        torch.testing.assert_close(sums[name], value)


def test_grams_sum_over_batches_and_positions_and_leave_no_hook() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    batches = [torch.randn(4, 5, 3), torch.randn(2, 5, 3)]
    with torch.no_grad(), input_grams(model) as grams:
        for batch in batches:
            model(batch)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for batch in batches:
        for row in batch.reshape(-1, 3).double():
            expected += torch.outer(row, row)
    torch.testing.assert_close(grams["0.weight"], expected)
    assert grams["0.weight.rows"] == grams["2.weight.rows"] == 30
    before = grams["0.weight"].clone()
    model(batches[0])
    assert torch.equal(grams["0.weight"], before)
