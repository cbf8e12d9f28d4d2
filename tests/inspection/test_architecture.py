import pytest
import timm

from lwptv_lightning.inspection import find_architecture


def shapes(name, **arguments):
    model = timm.create_model(name, **arguments)
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def few_models(monkeypatch):
    """A registry of few models, so that each search takes little."""
    known = [
        "test_vit",
        "test_resnet",
        "test_convnext",
        "test_efficientnet",
        "deit_tiny_patch16_224",
        "vit_tiny_patch16_224",
    ]
    monkeypatch.setattr(timm, "list_models", lambda: known)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"])
def test_a_model_is_known_by_its_tensors_whatever_its_classifier(name):
    found = find_architecture(shapes(name, num_classes=3))
    assert (found.names, found.arguments) == ((name,), {})
    without = {key: shape for key, shape in shapes(name).items() if not key.startswith(found.classifier)}
    assert find_architecture(without).names == (name,)


def test_models_of_the_same_tensors_are_all_named():
    found = find_architecture(shapes("deit_tiny_patch16_224"))
    assert found.names == ("vit_tiny_patch16_224", "deit_tiny_patch16_224")


def test_image_size_and_channels_are_known():
    assert find_architecture(shapes("test_vit", img_size=64)).arguments == {"img_size": 64}
    assert find_architecture(shapes("test_resnet", in_chans=1)).arguments == {"in_chans": 1}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_order_of_tensors_in_a_file_says_nothing(channels):
    sorted_names = dict(sorted(shapes("test_convnext", in_chans=channels).items()))  # a depthwise convolution is first
    found = find_architecture(sorted_names)
    assert found.names == ("test_convnext",)
    assert found.arguments == ({} if channels == 3 else {"in_chans": channels})


def test_the_nearest_is_named_where_none_fits():
    found = find_architecture(shapes("vit_tiny_patch16_224", depth=2))
    assert found.names == ()
    assert found.nearest in ("vit_tiny_patch16_224", "deit_tiny_patch16_224")
    assert "it has 'blocks.2." in found.misfit
    changed = shapes("test_resnet") | {"layer1.0.conv1.weight": (5, 5, 5, 5)}
    assert "'layer1.0.conv1.weight' has shape" in find_architecture(changed).misfit
    assert "it has no 'more'" in find_architecture(shapes("test_resnet") | {"more": (77,)}).misfit


def test_all_that_may_fit_are_gone_through():
    seen = []

    def track(names, count):
        seen.append(count)
        return names

    find_architecture(shapes("test_vit"), track)
    assert seen == [3]  # those that have its first layer


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_model_is_near_to_none():
    assert find_architecture({"x": (1,)}).names == ()
