"""A warning that comes before somebody listens is neither lost nor deadly."""

import signal
import subprocess
import sys
import threading

import pytest

from pipeline.signals import warnings_held
from pipeline.training.preemption import warned
from pipeline.training.ranks import _passing_on_signals


def test_a_warning_is_held_until_somebody_listens():
    with warnings_held():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other threads hold nothing back
        with warned() as told:
            assert told.signal is signal.SIGUSR1
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_warning_that_nobody_listened_to_ends_with_what_held_it():
    with pytest.raises(KeyError), warnings_held():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other threads hold nothing back
        raise KeyError
    assert signal.SIGUSR1 not in signal.sigpending()


RANK = """
import signal, sys, time
print("held", signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)
sys.stdin.readline()
signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
time.sleep(30)
"""


def test_a_launcher_that_is_warned_early_hands_the_warning_to_ranks_that_hold_it_too():
    with warnings_held():
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other threads hold nothing back
        rank = subprocess.Popen([sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert rank.stdout.readline() == b"held True\n"
        with _passing_on_signals([rank]):
            pass
        rank.communicate(b"now\n", timeout=20)
    assert rank.returncode == 75
