"""Help that fits a screen, and examples that run as they stand."""

import shlex
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from _helpers.own_models import write_own_models

from lwptv_lightning.cli import main
from lwptv_lightning.cli.configured import OWN_HELP
from lwptv_lightning.cli.help import SWITCHES
from lwptv_lightning.cli.main import COMMANDS, PURPOSES

CONFIGURED = ("validate", "sweep", "tune", "collect", "learn")


def page(capsys, *arguments):
    """Return what ``--help`` prints."""
    with suppress(SystemExit):
        main([*arguments, "--help"])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def examples(text):
    """Return the words of each command behind the heading that begins a page's examples."""
    lines = text.partition("\nexample:\n")[2].splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """The folder that examples run in: a base, two experts, what was merged of them, and a configuration."""
    monkeypatch.chdir(tmp_path)
    write_own_models(tmp_path / "own", images=2)
    own = write_own_models(tmp_path, kinds=["safetensors"] * 4, images=2)
    for path in Path("models").iterdir():
        shutil.move(path, path.name)
    own.write(base="base.safetensors", tasks={task: f"{task}.safetensors" for task in own.tasks})
    tasks = ["base.safetensors", "cats=cats.safetensors", "cars=cars.safetensors"]
    main(["merge", *tasks, "--exclude", "fc.*", "--out", "merged.safetensors"])
    Path("merged").mkdir()
    shutil.copy("merged.safetensors", "merged/model.safetensors")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_each_commands_help_run_as_they_stand(command, prepared, hub, capsys):
    capsys.readouterr()
    found = examples(page(capsys, command))
    assert found, f"lwptv {command} --help has no example"
    for program, *arguments in found:
        assert (program, arguments[0]) == ("lwptv", command)
        before = {path for path in prepared.rglob("*") if path.is_file()}
        main(arguments)
        assert capsys.readouterr().out
        written = {path for path in prepared.rglob("*") if path.is_file()} - before
        assert written or not {"--out", "--save"}.intersection(arguments)


def test_the_program_has_one_screen_with_each_command_under_one_purpose(capsys):
    text = page(capsys)
    lines = text.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [name for purpose in PURPOSES.values() for name in purpose] == [*COMMANDS.values()]
    assert all(sum(line.startswith(f"{purpose} ") for line in lines) == 1 for purpose in PURPOSES)
    assert all(switch in text for switch in SWITCHES)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_page_tells_of_the_switches(command, capsys):
    text = page(capsys, command)
    assert all(switch in text for switch in SWITCHES)
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("command", CONFIGURED)
def test_a_configurations_keys_come_first_and_the_trainers_options_on_demand(command, capsys):
    text = page(capsys, command)
    assert len(text.splitlines()) < 50
    assert all(f"\n  {key} " in text for key in OWN_HELP)
    assert "--config" in text
    assert "--trainer.max_epochs" not in text
    assert ("--save" in text) == (command == "validate")
    assert ("--recipes" in text) == (command == "sweep")
    with pytest.raises(SystemExit, match="^0$"):
        main([command, "--help.trainer"])
    assert "--trainer.max_epochs" in capsys.readouterr().out
