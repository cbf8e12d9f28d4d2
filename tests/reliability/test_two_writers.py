"""Processes that write to one path at the same time."""

import os
import random
from functools import partial
from unittest import mock

from _helpers.forks import forked, status_of
from _helpers.written_models import FILES, SHARDS, values_in, write_model

from lwptv_lightning import MergeRecipe
from lwptv_lightning.report import RECIPE, REPORT, RESULTS, ReportFolder

REFUSED = 7


def at_once(actions):
    """Run each in a process, all let go at the same moment, and return their statuses."""
    waiting, go = os.pipe()

    def run(action):
        os.close(go)
        os.read(waiting, 1)  # which ends when all ends of the pipe are closed
        return action()

    children = [forked(partial(run, action)) for action in actions]
    os.close(go)
    os.close(waiting)
    return [status_of(child) for child in children]


def writer(path, value, size, overwrite, number=None):
    """Return what writes a model, and tells whether it was refused; ``number`` is what it takes for its process'."""

    def write():
        with mock.patch.object(os, "getpid", return_value=number or os.getpid()):
            try:
                write_model(path, value, size, overwrite=overwrite)
            except FileExistsError as error:
                return REFUSED if str(path) in str(error) else 1
            return 0

    return write


def rounds(count, tmp_path):
    """Yield a seeded draw of writers' sizes, and a folder, for each round."""
    draw = random.Random(0)
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        yield draw, folder, [draw.choice(list(SHARDS)) for _ in range(draw.choice((2, 2, 2, 4)))]


def test_without_overwrite_one_of_several_writers_succeeds(amount, tmp_path, row):
    count = writers = 0
    for draw, folder, sizes in rounds(amount(5, 120), tmp_path):
        pid = draw.choice((None, 1))
        statuses = at_once(writer(folder / "m.safetensors", n, size, False, pid) for n, size in enumerate(sizes, 1))
        assert sorted(statuses) == [0] + [REFUSED] * (len(sizes) - 1)
        winner = statuses.index(0)
        assert set(values_in(folder)) <= {winner + 1, None}
        assert values_in(folder)[2] == winner + 1
        assert len(list(folder.iterdir())) == FILES[sizes[winner]]
        count, writers = count + 1, writers + len(sizes)
    row(
        f"{count:,} times 2 to 4 writers at once on one path ({writers:,} in all), single and sharded, also of one "
        "process number, without `--overwrite`",
        "one succeeded, the others were refused by name and left nothing",
    )


def test_with_overwrite_the_model_is_wholly_one_of_the_writers(amount, tmp_path, row):
    count = 0
    for draw, folder, sizes in rounds(amount(5, 120), tmp_path):
        if old := draw.choice((None, *SHARDS)):
            write_model(folder / "m.safetensors", 9, old)
        statuses = at_once(writer(folder / "m.safetensors", n, size, True) for n, size in enumerate(sizes, 1))
        assert statuses == [0] * len(sizes)
        value = values_in(folder)[2]
        assert 1 <= value <= len(sizes)
        assert set(values_in(folder)) == {value, None}
        assert len(list(folder.iterdir())) == FILES[sizes[int(value) - 1]]
        count += 1
    row(
        f"{count:,} times 2 to 4 writers at once on one path, single and sharded, over an old model or none",
        "wholly the model of one of them, no other file left",
    )


def test_reports_at_once_are_each_whole(amount, tmp_path):
    def report(folder, number):
        files = ReportFolder(folder, "# Title", (REPORT, RESULTS, RECIPE))
        files.require_own()
        with files.writing() as made:
            (made / REPORT).write_text(f"# Title\n{number}" * 99)
            (made / RESULTS).write_text(f"model,{number}\n" * 99)
            (made / RECIPE).write_text(MergeRecipe(scale=number).to_json())

    for number in range(amount(2, 40)):
        folder = tmp_path / str(number)
        assert at_once(partial(report, folder, n) for n in (1, 2)) == [0, 0]
        assert sorted(path.name for path in folder.iterdir()) == sorted((REPORT, RESULTS, RECIPE))
        assert (folder / REPORT).read_text() in [f"# Title\n{n}" * 99 for n in (1, 2)]
        assert (folder / RESULTS).read_text() in [f"model,{n}\n" * 99 for n in (1, 2)]
