from lwptv_lightning.registry import nearest


def test_nearest_ignores_case_and_says_nothing_where_nothing_is_near():
    assert nearest("TIES", ["ties", "dare"]) == " Did you mean 'ties'?"
    assert nearest("xyz", ["ties", "dare"]) == ""
