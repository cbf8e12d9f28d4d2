"""``lwptv verify``; what it finds is tested with the inspection."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lwptv_lightning.cli import main
from lwptv_lightning.merging.data import write_data_statistics


@pytest.fixture
def files(base_state, task_states, tmp_path):
    states = {"base": base_state, **task_states}
    for name, state in states.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    return {name: str(tmp_path / f"{name}.safetensors") for name in states}


@pytest.fixture
def merged(files, tmp_path):
    out = tmp_path / "out" / "merged.safetensors"
    given = [files["base"], *(f"{task}={files[task]}" for task in "abc")]
    main(["merge", *given, "--out", str(out), "--rule", "ties", "--ratio", "0.5", "--max-shard-size", "100"])
    return str(out), given


def run(*arguments):
    try:
        main(["verify", *arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_equal(merged, capsys):
    out, given = merged
    capsys.readouterr()
    assert run(out) == 0
    assert "is whole: its bytes are those that were written." in (shown := capsys.readouterr().out)
    assert "It is a merge of a, b, c by ties x 1, mean_abs 0.5 with lwptv_lightning" in shown
    assert run(out, *given) == 0
    assert "Made again: all 5 tensors, none of which differs." in capsys.readouterr().out
    assert run(out, *given, "--sample", "2", "--seed", "3", "--max-memory", "1GB", "--device", "cpu") == 0
    assert "Made again: 2 of 5 tensors, none of which differs." in capsys.readouterr().out


def test_damage_and_other_inputs(merged, files, tmp_path, capsys):
    out, given = merged
    shard = sorted((tmp_path / "out").glob("*-of-*"))[0]
    data = bytearray(shard.read_bytes())
    data[-2] ^= 4
    shard.write_bytes(data)
    assert run(out) == 1
    assert f"{shard.name}: its tensors are not those that were written" in capsys.readouterr().out
    data[-2] ^= 4
    shard.write_bytes(data)
    other = tmp_path / "other.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(files["base"]).items()}, other)
    assert run(out, str(other), *given[1:]) == 1
    assert "base: is not the base that was merged" in capsys.readouterr().out
    assert run(out, given[0], f"aa={files['a']}", *given[2:]) == 1
    shown = capsys.readouterr().out
    assert "a: is missing; its weights are given as 'aa'." in shown
    assert "none of which differs" in shown


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{out}", "{base}"], "name these too"),
        (["{out}", "{base}", "a"], "a task must be given as NAME=VALUE"),
        (["{out}", "{base}", "a={a}", "--sample", "0"], "sample must be at least 1"),
        (["{base}", "{base}", "a={a}"], "its metadata do not say how it was made; expected a model that lwptv merge"),
        (["none.safetensors"], "none.safetensors"),
        (["{out}", "{base}", "a={a}", "b={b}", "c={c}", "--exclude", "heed.*"], "unknown exclude pattern 'heed.*'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(arguments, told, merged, files):
    words = {"out": merged[0], **files}
    code = run(*(argument.format(**words) for argument in arguments))
    assert told in code
    assert "\n" not in code


def test_data_statistics(files, tmp_path, base_state):
    data = {task: {name: torch.ones_like(tensor) for name, tensor in base_state.items()} for task in "ab"}
    statistics = str(write_data_statistics(data, tmp_path / "fisher.safetensors"))
    given = [files["base"], f"a={files['a']}", f"b={files['b']}"]
    out = str(tmp_path / "merged.safetensors")
    main(["merge", *given, "--out", out, "--rule", "fisher", "--data-statistics", statistics])
    assert run(out, *given, "--data-statistics", statistics) == 0
    assert "needs --data-statistics" in run(out, *given)
