from piip.train.clock import clock
from piip.train.curves import smoothed
from piip.train.environment import environment
from piip.train.folder import RunFolder
from piip.train.logs import CsvLogger


def test_rows_of_one_step_are_one_and_columns_may_come_late(tmp_path):
    folder = RunFolder(tmp_path)
    logger = CsvLogger(folder.metrics)
    logger.log_metrics({"loss": 2.0}, step=1)
    logger.log_metrics({"loss": 1.0}, step=2)
    logger.log_metrics({"ap": 0.5}, step=2)
    logger.save()
    assert folder.read_metrics() == [{"step": 1, "loss": 2}, {"step": 2, "loss": 1, "ap": 0.5}]


def test_a_resumed_log_forgets_what_will_be_repeated(tmp_path):
    folder = RunFolder(tmp_path)
    rows = [{"step": float(step), "loss": 1.0 / step} for step in range(1, 9)]
    logger = CsvLogger(folder.metrics, rows)
    logger.rewind(5)
    logger.log_metrics({"loss": 9.0}, step=6)
    logger.finalize("success")
    assert [row["step"] for row in folder.read_metrics()] == [1, 2, 3, 4, 5, 6]
    assert folder.read_metrics()[-1]["loss"] == 9


def test_nothing_logged_writes_nothing(tmp_path):
    CsvLogger(tmp_path / "metrics.csv").save()
    assert not list(tmp_path.iterdir())
    assert RunFolder(tmp_path).read_metrics() == []


def test_smoothing_has_no_bias_at_the_start():
    assert smoothed([3.0] * 5) == [3.0] * 5 or max(abs(v - 3) for v in smoothed([3.0] * 5)) < 1e-9
    assert 0 < smoothed([0.0, 1.0])[1] < 1


def test_durations():
    assert clock(59.6) == "0:01:00"
    assert clock(3661) == "1:01:01"


def test_environment_names_versions():
    found = environment()
    assert found["packages"]["torch"]
    assert found["cpu_cores"] >= 1
