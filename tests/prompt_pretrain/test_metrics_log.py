import json
import sys

from prompt_pretrain.metrics_log import MetricsLog, read_metrics


def test_rows_come_back_in_order_and_by_kind(tmp_path):
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(5, "train", {"loss": 1.5, "lr": 1e-5})
    log.write(6, "epoch", {"accuracy": float("nan")})
    log.close()
    assert read_metrics(log.path) == [
        {"step": 5, "kind": "train", "loss": 1.5, "lr": 1e-5},
        {"step": 6, "kind": "epoch", "accuracy": None},
    ]
    assert [row["step"] for row in read_metrics(log.path, "epoch")] == [6]


def test_resuming_cuts_rows_behind_the_step_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [json.dumps({"step": step, "kind": "train"}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(rows) + '{"step": 5, "ki')
    log = MetricsLog(tmp_path, step=2, tensorboard=False)
    log.write(3, "train", {})
    log.close()
    assert path.read_text() == "".join(rows[:3])


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
    MetricsLog(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_events_hold_the_numbers_and_not_the_words(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(3, "train", {"loss": 0.5, "note": "x"})
    log.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5)]


def test_without_tensorboard_a_line_says_how_to_get_it(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = MetricsLog(tmp_path)
    log.write(1, "train", {"loss": 1.0})
    log.close()
    assert "pip install tensorboard" in caplog.text
    assert len(read_metrics(log.path)) == 1
