import re
import subprocess
import sys
import warnings

import pytest

from piip import cli
from piip.cli import VERBS, main
from piip.errors import DataError


def test_overview_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb} " in text for verb in VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("piip ")
    assert main([]) == 2


def modules_after(calls: str) -> list[str]:
    """What a fresh interpreter has imported, of what takes long, after some code."""
    heavy = ("torch", "torchvision", "timm", "lightning", "transformers", "numba", "jsonargparse", "rich")
    code = f"import sys, piip.cli\n{calls}\nprint('|', *[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.rpartition("|")[2].split()


def test_overview_imports_nothing_heavy():
    assert modules_after("piip.cli.main(['--help'])") == []


def test_help_and_wrong_names_do_not_wait_for_torch():
    calls = "".join(f"assert piip.cli.main([{verb!r}, '--help']) == 0\n" for verb in VERBS)
    calls += "assert piip.cli.main(['info', 'piip_tsb_1120']) == 2\n"
    calls += "assert piip.cli.main(['train', 'nowhere.yaml']) == 2\n"
    assert not set(modules_after(calls)) - {"jsonargparse", "rich"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: piip {verb}")
    summary = VERBS[verb][1]
    assert summary.split()[0] in text
    assert not re.search(r"<class|Optional\[|Literal\[|tuple\[|class_path", text), "types are said in words"
    assert "`" not in text, "a terminal shows the marks of code as they are"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "There is no verb 'trian'. Did you mean 'train'?"),
        (["info"], "model"),
        (["info", "piip_tsb_1120"], "Unknown model"),
        (["info", "piip_nano", "--size", "3"], "Did you mean 'sizes'?"),
        (["info", "piip_nano", "--sizes", "256,192"], "2 numbers for 3 branches"),
        (["train"], "recipe"),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["predict", "nowhere.jpg", "--model", "nowhere"], "nowhere.jpg"),
        (
            ["predict", "a.jpg", "--model", "nowhere", "--scales", "0"],
            "test.scales is (0.0,); give a number above 0.",
        ),
        (["predict", "a.jpg", "--model", "nowhere", "--scales="], "test.scales is empty"),
        (["eval", "nowhere"], "nowhere"),
        (["eval", "nowhere", "--data.folder", "x"], "no argument '--data.folder'; give --data itself"),
        (["eval", "nowhere", "--scales", "1,-2"], "test.scales is (1.0, -2.0); give a number above 0."),
        (["eval", "nowhere", "--scales", "nan"], "scales is 'nan'; expected float"),
        (["eval", "nowhere", "--scales", "some"], "scales is 'some'; expected float"),
        (["check-data", "nowhere"], "nowhere does not exist"),
        (["convert", "a.pth", "out"], "--recipe"),
        (["report", "nowhere"], "no run"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line_and_exit_code_2(words, message, capsys):
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("piip: error: ")
    assert message in lines[0]


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def stopped(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stopped)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == "piip: stopped by Ctrl-C\n"


def test_warnings_are_one_line(monkeypatch, capsys):
    def doubtful(words):
        warnings.warn("branch 2 starts\n at random", stacklevel=1)
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_run", doubtful)
    assert main(["env"]) == 0
    assert capsys.readouterr().err == "piip: warning: branch 2 starts at random\n"


def test_many_lines_become_one(monkeypatch, capsys):
    def broken(words):
        raise DataError("first\n  second")

    monkeypatch.setattr(cli, "_run", broken)
    assert main(["env"]) == 2
    assert capsys.readouterr().err == "piip: error: first second\n"


def test_bugs_keep_their_traceback(monkeypatch):
    def bug(words):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_run", bug)
    with pytest.raises(ZeroDivisionError):
        main(["env"])


def test_list_env_and_info(capsys):
    assert main(["list", "tsb_1568"]) == 0
    assert "piip_tsb_1568_896_448" in capsys.readouterr().out
    assert main(["env"]) == 0
    assert '"torch"' in capsys.readouterr().out
    assert main(["info", "piip_tsb_1120_896_448", "--published"]) == 0
    assert "243.132" in capsys.readouterr().out
    assert main(["info", "piip_nano", "--sizes", "256,192,128"]) == 0
    assert "interaction" in capsys.readouterr().out
