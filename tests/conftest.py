"""Small models, checkpoints and trainers that many tests share."""

import copy
import functools
import signal

import pytest
import torch
from _helpers.entry_points import remembered
from _helpers.experts import train_experts
from _helpers.states import SHAPES, noise, watched

from lwptv_lightning import TaskVectors


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # Tensors this small gain nothing from threads, and lose much where other processes want the cores.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _entry_points():
    with remembered():
        yield


@pytest.fixture
def use_threads():
    """``use_threads(count)`` lets torch, and with it a merge, use some threads; afterwards as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def handlers():
    """Ctrl-C interrupts, also where the shell ignores it; afterwards all signals' handlers are those of before."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture
def fine_tuned():
    """``fine_tuned(state, seed)``: a state dict with noise added."""
    return noise


@pytest.fixture
def base_state():
    """A base model of five tensors, one of them 0-d."""
    return noise({name: torch.zeros(shape) for name, shape in SHAPES.items()}, seed=0, scale=1.0)


@pytest.fixture
def task_states(base_state):
    """Three fine-tuned models."""
    return {task: noise(base_state, seed) for seed, task in enumerate("abc", start=1)}


@pytest.fixture
def vectors(base_state, task_states):
    """The task vectors of these."""
    return TaskVectors.open(base_state, task_states)


@pytest.fixture
def counting_checkpoint():
    """``counting_checkpoint(tensors)``: a checkpoint and the counter of its reads."""

    def make(tensors):
        checkpoint, reader = watched(tensors)
        return checkpoint, reader.reads

    return make


@pytest.fixture(scope="session")
def make_experts(tmp_path_factory):
    """``make_experts(kind)``: what `_helpers.experts` trains, once for all tests, which write no file there."""

    @functools.cache
    def make(kind):
        return train_experts(tmp_path_factory.mktemp(kind), kind)

    return make


@pytest.fixture(scope="session")
def make_vit():
    """``make_vit(num_classes)``: a ViT of two blocks with seeded weights, in evaluation mode."""
    import timm

    def make(num_classes=0, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = timm.create_model(
                "vit_tiny_patch16_224",
                img_size=32,
                depth=2,
                embed_dim=48,
                num_heads=3,
                num_classes=num_classes,
                pretrained=False,
            )
        return model.eval()

    return make


@pytest.fixture(scope="session")
def _vit(make_vit):
    return make_vit()


@pytest.fixture
def vit(_vit):
    """A ViT of two blocks without a classifier."""
    return copy.deepcopy(_vit)


@pytest.fixture
def vit_vectors(vit):
    """The task vectors of two ViTs."""
    return TaskVectors.open(vit, {task: noise(vit.state_dict(), seed) for seed, task in enumerate("ab", start=1)})


@pytest.fixture
def make_trainer(tmp_path):
    """``make_trainer(**options)``: a quiet trainer on the CPU."""
    from lightning.pytorch import Trainer

    def make(**options):
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(**(quiet | options))

    return make
