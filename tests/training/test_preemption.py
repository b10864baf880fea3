"""Signals: the first asks, the second ends; each as a real signal to a real process."""

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


def test_a_signal_in_what_can_be_broken_off_breaks_it_off():
    with pytest.raises(KeyboardInterrupt), preemption.Stop() as stop:
        stop.hold()
        stop.release()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert stop.wanted == signal.SIGINT


def test_one_worker_of_several_never_breaks_off():
    with preemption.Stop(breaks_off=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
        assert stop.wanted == signal.SIGINT


def test_another_thread_than_the_main_one_leaves_signals_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def look():
        with preemption.Stop() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.wanted))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [(before, None)]


@pytest.mark.parametrize('number', preemption.SIGNALS)
def test_the_second_signal_ends_the_process_at_once(number):
    """While the main thread is in a call that Python's own handlers would wait for."""
    code = textwrap.dedent(
        """
        import ctypes
        from gan_mrcnn import stopping
        with stopping.Stop() as stop:
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
        assert f'{signal.Signals(number).name}: stopping' in said
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
