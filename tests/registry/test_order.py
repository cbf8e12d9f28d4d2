from lwptv_lightning.registry import natural_order


def test_numbers_count_by_value_and_modules_stay_together():
    names = ["b.10.w", "b.2.w", "b.2.v", "b.1.w", "b1.w", "b01.w", "b1.v", "a", "層10.w", "層9.w"]
    expected = ("a", "b.1.w", "b.2.v", "b.2.w", "b.10.w", "b01.w", "b1.v", "b1.w", "層9.w", "層10.w")
    assert natural_order(names) == natural_order(reversed(names)) == expected
