"""Signals as requests."""

from __future__ import annotations

import os
import signal

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


def test_sigterm_twice_stays_a_request():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM


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
