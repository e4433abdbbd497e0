"""Signals as requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from wmrl_ray.cli.signals import StopRequest


def test_the_first_signal_is_a_request_and_the_second_ctrl_c_interrupts():
    told = []
    with StopRequest(told.append) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() and told == ["SIGINT"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert told == ["SIGINT"]


def test_a_second_sigterm_ends_the_process_at_once():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        assert ended.value.code == 143


def test_after_the_grace_period_the_process_ends_without_its_checkpoint():
    told = []
    with StopRequest(grace_s=0.2, on_overdue=lambda: told.append("overdue")):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            time.sleep(30)
        assert ended.value.code == 143 and told == ["overdue"]


def test_who_does_not_unwind_is_ended(tmp_path):
    code = """
import os, signal, time
from wmrl_ray.cli import signals
signals.UNWIND_S = 0.5
with signals.StopRequest(grace_s=0.2):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try:
            time.sleep(30)
        except SystemExit:
            print("hangs on", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (143, "hangs on\n"), ended.stderr


def test_a_stop_in_time_stops_the_clock():
    with StopRequest(grace_s=0.2) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    time.sleep(0.5)  # the process lives


def test_the_handlers_are_given_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_that_ray_put_in_place_is_replaced_again():
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, lambda signum, frame: pytest.fail("the other handler was called"))
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
