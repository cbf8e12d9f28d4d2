import pytest

from lwptv_lightning.evaluation.typed_values import in_our_words

MESSAGES = {
    "Parser key \"a.b\":\n  Does not validate against any of the Union subtypes\n  Subtypes: [<class 'int'>, "
    "<class 'NoneType'>]\n  Errors:\n    - Expected a <class 'int'>\n  Given value type: <class 'str'>\n"
    "  Given value: x": ("a.b", "expected a whole number or null, not 'x'."),
    "Parser key \"p\":\n  Does not validate against any of the Union subtypes\n  Subtypes: [typing.Literal[64, 'a,b'], "
    "collections.abc.Iterable[x.y.Logger], <class 'bool'>]\n  Errors:\n  - Expected a path\n  Given value type: "
    "<class 'int'>\n  Given value: 17": ("p", "expected 64, a,b, a list or true or false, not 17."),
    "Group 'trainer' does not accept option 'x'": ("x", "unknown key."),
    "Parser key \"c\":\n  Problem with given class_path 'torch.nn.ReLU':\n    Option 'inplac' is not accepted": (
        "c.init_args.inplac",
        "torch.nn.ReLU takes no such argument. Did you mean 'inplace'?",
    ),
    "Parser key \"c\":\n  Problem with given class_path 'torch.nn.RelU':\n    module has no attribute": (
        "c",
        "the module 'torch.nn' has no 'RelU'. Did you mean 'ReLU'?",
    ),
    'Validation failed: Key "it.size" is required but not included in config': (
        "it.size",
        "it is required, and not given.",
    ),
    "unrecognized arguments: foo": ("", "unrecognized arguments: foo"),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_one_sentence(message):
    assert in_our_words(message) == MESSAGES[message]
