from lwptv_lightning.engine import WHOLE, Share


def test_one_process_alone_has_all_and_keeps_the_order():
    assert WHOLE.own(["b", "a"]) == ("b", "a")
    assert WHOLE.each(["b", "a"], str.upper) == {"b": "B", "a": "A"}
    assert list(WHOLE.each(["b", "a"], str.upper)) == ["b", "a"]


def test_each_process_computes_its_own_and_learns_the_rest():
    asked = []
    others = {"a": "from another"}

    def compute(name):
        asked.append(name)
        return "mine"

    share = Share(frozenset({"b"}), lambda own: [others, own])
    assert list(share.each(iter(["b", "a"]), compute).items()) == [("b", "mine"), ("a", "from another")]
    assert asked == ["b"]
