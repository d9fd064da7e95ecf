import os
import signal

import pytest

from prompt_pretrain.interruption import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_a_later_ctrl_c_interrupts(number, monkeypatch):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.agreed()
        os.kill(os.getpid(), number)
        assert stop.requested and stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)  # the same wish, passed on by a launcher
        monkeypatch.setattr("prompt_pretrain.interruption._IMPATIENT_AFTER_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before
