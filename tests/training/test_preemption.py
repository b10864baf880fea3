"""Preemption: the first signal asks, the second ends; real signals to real processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from gan_mrcnn.training import preemption


def test_a_signal_between_two_steps_only_asks():
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Stop() as stop:
        stop.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not stop.wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stop.wanted == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_outside_of_a_step_interrupts():
    with pytest.raises(KeyboardInterrupt), preemption.Stop() as stop:
        stop.hold()
        stop.release()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert stop.wanted == signal.SIGINT


def test_one_worker_of_several_is_never_interrupted():
    with preemption.Stop(breaks_off=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        assert stop.wanted == signal.SIGINT


def test_outside_the_main_thread_signals_are_not_caught():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with preemption.Stop() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.wanted))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


@pytest.mark.parametrize('number', preemption.SIGNALS)
def test_the_second_signal_ends_the_process_at_once(number):
    """While the main thread is in a call that Python's own handlers would wait for."""
    code = textwrap.dedent(
        """
        import ctypes
        from gan_mrcnn.training import preemption
        with preemption.Stop() as stop:
            stop.hold()
            print('ready', flush=True)
            ctypes.CDLL(None).usleep.argtypes = [ctypes.c_uint]
            for _ in range(1000):
                ctypes.CDLL(None).usleep(900_000)
        """
    )
    process = subprocess.Popen(
        [sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == 'ready\n'
        process.send_signal(number)
        said = process.stderr.readline() + process.stderr.readline()
        assert f'{signal.Signals(number).name}: stopping as soon as this step is done' in said
        # The same one, passed on by a parent process as well.
        process.send_signal(number)
        time.sleep(preemption.SAME_SIGNAL_SECONDS + 0.1)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=5) == 128 + number
        assert time.monotonic() - began < 2
    finally:
        process.kill()
