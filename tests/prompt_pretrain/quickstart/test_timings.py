import pytest

from prompt_pretrain.quickstart import timings
from prompt_pretrain.quickstart.timings import Pace, Timings


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timings.time, "monotonic", lambda: now[0])
    return now


def test_an_interrupted_step_goes_on_counting_and_a_finished_one_does_not(tmp_path, clock):
    path = tmp_path / "timings.json"
    with pytest.raises(KeyboardInterrupt), Timings(path).step("draw"):
        clock[0] += 3
        raise KeyboardInterrupt
    again = Timings(path)
    for seconds in (4, 9):
        with again.step("draw"):
            clock[0] += seconds
    with again.step("encode"):
        clock[0] += 1
    assert Timings(path).seconds == {"draw": 7.0, "encode": 1.0}


def test_a_damaged_file_starts_anew(tmp_path, clock):
    path = tmp_path / "timings.json"
    path.write_text('{"draw": {"sec')
    assert Timings(path).seconds == {}


def test_the_pace_of_done_steps_tells_the_remaining_time(clock):
    pace = Pace([10, 20, 40])
    assert pace.remaining() == 70
    with pace.step():
        clock[0] += 15
    assert pace.done == 1 and pace.remaining() == 90
    with pace.step():
        clock[0] += 0.5  # was done before: says nothing
    assert pace.remaining() == 60
