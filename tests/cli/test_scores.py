from lwptv_lightning.cli import main


def test_scores_are_listed(capsys):
    main(["scores"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mean_abs ")
    assert all(len(line.split()) > 2 for line in lines)
