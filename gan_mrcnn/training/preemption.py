# SPDX-License-Identifier: Apache-2.0
"""Preemption: the first SIGTERM or SIGINT (Ctrl-C) asks a run to stop, the second ends it at once.

Schedulers send SIGTERM before they take a machine away, users press Ctrl-C. Both must be answered
within seconds although TensorFlow keeps the main thread, in which Python handles signals, for as
long as a step takes. Another thread therefore reads them as they come.
"""

import os
import signal
import socket
import sys
import threading
import time
from typing import Optional

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A signal to a group of processes, one of which passes it on to another, comes twice: it is one.
SAME_SIGNAL_SECONDS = 0.3


class Stop:
    """Whether a signal has asked the run to stop; a context in which signals are caught.

    Between `hold` and `release` a signal only sets `wanted`, which the loop checks between two
    steps. Otherwise it also raises KeyboardInterrupt in the main thread, where start-up and
    validation can be interrupted with nothing lost. Outside the main thread nothing is caught.
    """

    def __init__(self, breaks_off: bool = True):
        """Starts without a request to stop.

        Args:
          breaks_off: whether a signal may interrupt the main thread. False: every signal waits for
            the step, because one of several workers cannot leave a collective operation.
        """
        self._breaks_off = breaks_off
        self.wanted: Optional[signal.Signals] = None
        self._held = False
        self._before = {}
        self._sockets = ()

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            return self
        self._sockets = socket.socketpair()
        for end in self._sockets:
            end.setblocking(False)
        # Written to by the C handler, whatever the main thread is doing.
        self._wakeup_before = signal.set_wakeup_fd(
            self._sockets[1].fileno(), warn_on_full_buffer=False
        )
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._in_main_thread)
        self._sockets[0].setblocking(True)
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *_):
        if not self._sockets:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        for end in reversed(self._sockets):
            end.close()

    def hold(self) -> None:
        """From here on a signal waits for the step."""
        self._held = True

    def release(self) -> None:
        """From here on a signal interrupts the main thread; one that came before does so now."""
        self._held = False
        if self._breaks_off and self.wanted is not None:
            raise KeyboardInterrupt

    def _in_main_thread(self, number, _) -> None:
        self.wanted = signal.Signals(number)
        if self._breaks_off and not self._held:
            raise KeyboardInterrupt

    def _listen(self) -> None:
        first: Optional[float] = None
        while True:
            try:
                received = self._sockets[0].recv(16)
            except OSError:
                return
            if not received:
                return
            for number in received:
                if number not in SIGNALS:
                    continue
                now = time.monotonic()
                if first is not None:
                    if now - first > SAME_SIGNAL_SECONDS:
                        os._exit(128 + number)
                    continue
                first = now
                self.wanted = signal.Signals(number)
                print(
                    f'\n{self.wanted.name}: stopping as soon as this step is done and saved; send '
                    'it again to stop at once, without saving',
                    file=sys.stderr,
                    flush=True,
                )
