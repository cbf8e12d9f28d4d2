import hashlib
import itertools

import numpy as np
import pytest
import torch

from lwptv_lightning.functional import draw_key, draw_limit, draws, random_keep

MANY = 1 << 18
POSITIONS = (0, 1, 65_535, 65_536, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**40 + 12_345)


@pytest.fixture(params=["numpy", "torch"])
def drawn_by(request, monkeypatch):
    """Draw by what the CPU uses and by what other devices do."""
    monkeypatch.setattr(draws, "_in_numpy", lambda device: request.param == "numpy")


def number_at(position, seed, task, name):
    """The number of an element in whole numbers of Python: the description in `random_keep`, step by step."""
    key = hashlib.sha256(f"{seed}\0{task}\0{name}\0{position // 2**32}".encode()).digest()
    k0, k1 = int.from_bytes(key[:4], "little"), int.from_bytes(key[4:8], "little")
    x = (position + k0) % 2**32
    x = (x ^ x // 2**17) * 0xED5AD4BB % 2**32
    x = (x ^ x // 2**11 ^ k1) * 0xAC4C1B51 % 2**32
    x = (x ^ x // 2**15) * 0x31848BAB % 2**32
    return x ^ x // 2**14


def test_the_numbers_stay_what_they_are():
    assert draw_key(0, "a", "w") == (3428924246, 274261501)
    assert [number_at(position, 0, "a", "w") for position in (0, 1, 2**32)] == [3343767109, 3692473839, 3014231999]


@pytest.mark.usefixtures("drawn_by")
@pytest.mark.parametrize("position", POSITIONS)
def test_an_element_is_kept_from_its_own_number_on(position):
    for task, name in (("a", "w"), ("dtd", "blocks.0.attn.qkv.weight"), ("é", "")):
        number = number_at(position, 7, task, name)
        for above, kept in ((0, 0.0), (1, 1.0)):
            probability = (number + above) / 2**32  # a float64 holds it exactly
            for given in (probability, torch.tensor([[probability]], dtype=torch.float64)):
                assert random_keep(1, given, 7, [task], name, position).tolist() == [[kept]]


@pytest.mark.usefixtures("drawn_by")
@pytest.mark.parametrize("probability", [0.5, 0.3])
@pytest.mark.parametrize("start", [0, 2**32 - 70_000])
def test_the_draw_of_an_element_depends_on_its_position_alone(probability, start):
    count = 140_000  # parts of the CPU's size end inside, and a key at the second start
    whole = random_keep(count, probability, 1, ["a", "b"], "w", start)
    ends = [0, 1, 8, 17, 65_536, 69_999, 70_001, count]
    parts = [
        random_keep(end - first, probability, 1, ["a", "b"], "w", start + first)
        for first, end in itertools.pairwise(ends)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(random_keep(count, probability, 1, ["b", "a"], "w", start).flip(0), whole)
    oracle = [float(number_at(start + at, 1, "b", "w") < probability * 2**32) for at in range(69_990, 70_010)]
    assert whole[1, 69_990:70_010].tolist() == oracle


@pytest.mark.usefixtures("drawn_by")
@pytest.mark.parametrize("probability", [2.0**-32, 1e-5, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_probability_for_each_element_is_the_number(probability, dtype):
    chances = torch.full((2, 70_000), probability, dtype=dtype)
    each = random_keep(70_000, chances, 3, ["a", "b"], "w", 5)
    assert torch.equal(each, random_keep(70_000, float(chances[0, 0]), 3, ["a", "b"], "w", 5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("start", [0, 2**32 - 70_000])
def test_a_device_draws_as_the_cpu_does(start):
    count = (1 << 22) + 1
    chances = torch.rand(2, count, generator=torch.Generator().manual_seed(0))
    for given, there in ((0.3, 0.3), (chances, chances.cuda())):
        expected = random_keep(count, given, 1, ["a", "b"], "w", start)
        assert torch.equal(random_keep(count, there, 1, ["a", "b"], "w", start, like=chances.cuda()).cpu(), expected)


def test_what_is_kept_is_kept_at_higher_probabilities_too():
    chances = torch.tensor([0.0, 0.25, 0.75, 1.0]).repeat(1, MANY // 4)
    kept = random_keep(MANY, chances, 3, ["a"], "w")
    assert kept.unique().tolist() == [0.0, 1.0]
    assert kept.reshape(-1, 4)[:, 0].sum() == 0
    assert kept.reshape(-1, 4)[:, 3].mean() == 1
    assert (random_keep(MANY, 0.75, 3, ["a"], "w") >= random_keep(MANY, 0.25, 3, ["a"], "w")).all()


@pytest.mark.usefixtures("drawn_by")
def test_certainty_and_nothing():
    assert random_keep(3, 1.0, 0, ["a"], "w").tolist() == [[1.0, 1.0, 1.0]]
    assert random_keep(3, 0.0, 0, ["a"], "w").tolist() == [[0.0, 0.0, 0.0]]
    assert random_keep(0, 0.5, 0, ["a"], "w").shape == (1, 0)
    assert random_keep(0, torch.zeros(1, 0), 0, ["a"], "w").shape == (1, 0)


def test_a_limit_rounds_up():
    assert [draw_limit(2.0**-32 * size) for size in (0, 0.5, 1, 1.5)] == [0, 1, 1, 2]
    assert draw_limit(np.nextafter(1, 0)) == draw_limit(1) == 2**32
    assert draw_limit(torch.tensor([0, 2.0**-33, 1.0])).tolist() == [0, 1, 2**32]


@pytest.mark.parametrize("probability", [0.001, 1 / 256, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_the_share_kept_is_the_probability(probability):
    kept = random_keep(MANY, probability, 0, [f"task{number}" for number in range(4)], "w")
    assert_independent(standardised(kept, probability).mean(1) * MANY**0.5)


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_elements_at_any_distance_are_drawn_independently(probability):
    near = standardised(random_keep(MANY + 64, probability, 5, ["a"], "w"), probability)[0]
    here = near[:MANY]
    others = [near[distance : distance + MANY] for distance in range(1, 65)]
    others += [
        standardised(random_keep(MANY, probability, 5, ["a"], "w", 2**power), probability)[0] for power in range(7, 33)
    ]
    assert_independent(torch.stack([here @ other for other in others]) / MANY**0.5)


@pytest.mark.parametrize("probability", [0.1, 0.5])
@pytest.mark.parametrize(
    "keys",
    [
        [(seed, "a", "w") for seed in range(24)],
        [(0, f"task{number}", "w") for number in range(24)],
        [(0, "a", f"blocks.{number}.mlp.fc1.weight") for number in range(24)],
    ],
    ids=["seeds", "tasks", "tensors"],
)
def test_neighbouring_keys_draw_independently(keys, probability):
    kept = torch.cat([random_keep(MANY // 4, probability, seed, [task], name) for seed, task, name in keys])
    rows = standardised(kept, probability)
    for distance in (0, 1, 8):
        together = rows[:, distance:] @ rows[:, : rows.shape[1] - distance].T / rows.shape[1] ** 0.5
        assert_independent(together[~torch.eye(len(keys), dtype=torch.bool)])


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_gaps_between_kept_elements_are_geometric(probability):
    kept = random_keep(MANY, probability, 2, ["a"], "w")[0].numpy()
    gaps = np.diff(np.flatnonzero(kept)) - 1
    longest = int(np.log(100 / len(gaps)) / np.log(1 - probability))  # some hundred are longer
    shares = probability * (1 - probability) ** np.arange(longest)
    assert_as_expected(np.bincount(gaps.clip(max=longest), minlength=longest + 1), [*shares, 1 - shares.sum()])


def test_leading_bits_come_alike_and_so_do_those_of_neighbours():
    leading = sum(random_keep(MANY, level / 16, 4, ["a"], "w")[0] for level in range(1, 16)).numpy().astype(int)
    for neighbours in (1, 2, 3):
        cells = 16**neighbours
        counted = leading[: MANY // neighbours * neighbours].reshape(-1, neighbours) @ 16 ** np.arange(neighbours)
        assert_as_expected(np.bincount(counted, minlength=cells), np.full(cells, 1 / cells))


def standardised(kept, probability):
    return (kept - probability) / (probability * (1 - probability)) ** 0.5


def assert_independent(deviations):
    """Each is normal with mean 0 and deviation 1, if the draws are what they should be."""
    assert deviations.abs().max() < 5
    assert deviations.square().mean() < 1 + 5 * (2 / deviations.numel()) ** 0.5


def assert_as_expected(counts, shares):
    """Chi-square of counts against the shares that they should have."""
    expected = np.asarray(shares) * counts.sum()
    freedom = len(counts) - 1
    assert abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5
