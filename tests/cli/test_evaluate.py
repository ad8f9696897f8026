"""The tables of ``piip eval``."""

from piip.cli import evaluate


def test_classes_that_are_not_in_the_data_are_counted_not_listed(capsys):
    classes = {"cat": {"AP": 0.5}, "dog": {"AP": None}, "cow": {"AP": None}}
    evaluate._print("a run", {"box": {"AP": 0.5, "classes": classes}})
    shown = capsys.readouterr().out
    assert "AP by class (2 others are not in the data)" in shown
    assert "cat" in shown
    assert "dog" not in shown
