import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.engine import Execution, Ranks, Stream


class TwoRanks(Ranks):
    """The second of two processes; what the first one found is made up."""

    def __new__(cls, others):
        self = super().__new__(cls)
        object.__setattr__(self, "others", others)
        return self

    def __init__(self, others):
        super().__init__(rank=1, size=2)

    def exchange(self, value):
        return [self.others, value]


def test_one_process_alone_reads_all_in_order(vectors):
    stream = Stream.of(vectors)
    assert stream.names == stream.own_names == vectors.names
    assert [block.name for block in stream.blocks()] == list(vectors.names)
    assert stream.elements == sum(vectors.base(name).numel() for name in vectors.names)
    assert stream.exchange("mine") == ["mine"]
    assert list(stream.each(str.upper, ["gain", "fc.weight"]).items()) == [("gain", "GAIN"), ("fc.weight", "FC.WEIGHT")]


def test_each_process_reads_its_own_and_learns_the_rest(vectors):
    names = ("gain", "fc.weight")
    execution = Execution(ranks=TwoRanks({"gain": torch.tensor(7.0)}))
    stream = Stream.of(vectors, names, execution=execution, owner={"gain": 0, "fc.weight": 1})
    assert stream.own_names == ("fc.weight",)
    assert [block.name for block in stream.blocks()] == ["fc.weight"]
    total = stream.sum(lambda block: block.tau.sum())
    assert list(total) == list(names)
    assert total["gain"] == 7
    torch.testing.assert_close(total["fc.weight"], vectors.stack("fc.weight").sum())


def test_dtype_order_and_strides(vectors):
    stream = Stream.of(vectors, ("gain", "fc.weight"), dtype=torch.float64)
    assert stream.stack("fc.weight").dtype == torch.float64
    gain, matrix = stream.sample(lambda block: block, 4)
    assert torch.equal(matrix.tau, vectors.stack("fc.weight", torch.float64).flatten(1)[:, ::4])
    assert torch.equal(gain.base, vectors.base("gain").reshape(1))


def test_sums_do_not_depend_on_the_size_of_blocks(vectors):
    def sums(block_bytes):
        stream = Stream.of(vectors, execution=Execution(block_bytes=block_bytes))
        return stream.sum(lambda block: block.tau.square().sum(1))

    small, large = sums(1), sums(1 << 20)
    assert all(torch.equal(small[name], value) for name, value in large.items())


def test_what_was_collected_is_known_without_reading_it(vectors):
    class Names(dict):
        def __getitem__(self, name):
            raise AssertionError("read")

    first, second = vectors.names[:2]
    data = {task: Names({first: 0, second.removesuffix(".weight"): 0}) for task in vectors.tasks}
    data[vectors.tasks[0]].pop(first)
    stream = Stream.of(vectors, data=data)
    assert not stream.is_collected(first)
    assert stream.is_collected(second)


def test_elements_are_counted_once_however_many_tensors_are_merged(monkeypatch):
    base = {f"{number}.weight": torch.zeros(2) for number in range(40)}
    vectors = TaskVectors.open(base, {"a": {name: values + 1 for name, values in base.items()}})
    counted, numel = [], Stream.numel
    monkeypatch.setattr(Stream, "numel", lambda stream, name: counted.append(name) or numel(stream, name))
    for compiled in (False, True):
        counted.clear()
        merge(vectors, MergeRecipe("ties", ratio=0.5, granularity="tensor"), execution=Execution(compiled=compiled))
        assert len(counted) < 20 * len(base)
