"""Nothing asks the network while no checkpoint on the hub is named; as a script, this file is what asks nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRIED = []
"""What asked for the network."""


def refuse(event, arguments):
    """Refuse internet sockets and the names of hosts, whoever asks, from before the first import on."""
    import socket

    internet = event == "socket.__new__" and arguments[1] in (socket.AF_INET, socket.AF_INET6)
    asked = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto")
    if internet or (asked and not (event == "socket.connect" and arguments[0].family == socket.AF_UNIX)):
        TRIED.append(event)
        raise OSError(f"no network here: {event}")


def write_checkpoints(folder):
    import torch
    from _helpers.states import noise
    from safetensors.torch import save_file

    base = {"a.weight": torch.ones(4, 4), "a.bias": torch.zeros(4), "b.weight": torch.ones(2, 4)}
    for name, state in {"base": base, "x": noise(base, 1), "y": noise(base, 2)}.items():
        save_file(state, folder / f"{name}.safetensors")
    torch.save(noise(base, 3), folder / "z.pt")
    return [str(folder / "base.safetensors"), f"x={folder / 'x.safetensors'}", f"y={folder / 'y.safetensors'}"]


def commands(folder):
    given = write_checkpoints(folder)
    out = str(folder / "merged.safetensors")
    yield "merge", ["merge", *given, f"z={folder / 'z.pt'}", "--out", out]
    yield "check", ["check", *given]
    yield "diff", ["diff", given[0], out]
    yield "rules", ["rules"]
    yield "scores", ["scores"]
    configuration = Path(__file__).parents[2] / "examples" / "demo.yaml"
    (folder / "demo.yaml").write_text(
        configuration.read_text().replace("size: 150", "size: 5").replace("auto", "cpu"), encoding="utf-8"
    )
    quiet = ["--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={folder}"]
    yield "validate", ["validate", "--config", str(folder / "demo.yaml"), *quiet]


def validate_timm(folder):
    """Build and evaluate a timm model from files, as a configuration does."""
    import timm
    import torch
    from _helpers.states import noise
    from lightning.pytorch import Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from lwptv_lightning.evaluation import timm_module

    arguments = {"img_size": 32, "depth": 1, "num_classes": 3}
    base = timm.create_model("vit_tiny_patch16_224", pretrained=False, **arguments).state_dict()
    torch.save(base, folder / "base.pt")
    torch.save(noise(base, 1), folder / "a.pt")
    files = {"base": str(folder / "base.pt"), "tasks": {"a": str(folder / "a.pt")}}
    module = timm_module("vit_tiny_patch16_224", **files, recipe="ties", model_arguments=arguments)
    data = DataLoader(TensorDataset(torch.zeros(2, 3, 32, 32), torch.zeros(2).long()))
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.validate(module, {"id/a": data}, verbose=False)


def notices():
    """Tell whether something that asks is refused and noticed."""
    import socket

    before = len(TRIED)
    with pytest.raises(OSError, match="no network here"):
        socket.create_connection(("127.0.0.1", 9))
    return len(TRIED) > before


def work(folder, demo):
    """Do all that the command line does, without a network, and write what asked for one."""
    from lwptv_lightning.cli import main

    done = []
    for name, arguments in commands(folder):
        main(arguments)
        done.append(name)
    validate_timm(folder)
    done.append("a timm model")
    if demo:
        main(["demo", "--size", "5", "--out", str(folder / "demo")])
        done.append("demo")
    found = {"done": done, "tried": list(TRIED), "notices": notices()}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.parametrize("alone", [False, True], ids=["refused", "no network at all"])
def test_nothing_asks_the_network(alone, amount, row, tmp_path):
    prefix = ["unshare", "-rn"] if alone else []
    if alone and (not amount(False, True) or subprocess.run([*prefix, "true"], capture_output=True).returncode):
        pytest.skip("tried in the long form, where processes may have a network of their own")
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [*prefix, sys.executable, __file__, str(tmp_path), *(["demo"] if amount(False, not alone) else [])],
        env={name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tried"] == []
    assert found["notices"]
    row(
        f"{', '.join(found['done'])} {'without any network' if alone else 'with sockets refused'}",
        "all work, and none asks for a socket or the name of a host",
    )


if __name__ == "__main__":
    sys.addaudithook(refuse)
    work(Path(sys.argv[1]), demo="demo" in sys.argv[2:])
