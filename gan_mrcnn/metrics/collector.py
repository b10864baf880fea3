# SPDX-License-Identifier: Apache-2.0
"""Detections as one list of COCO results, made by threads while the network predicts on.

Threads, not processes: pasting and encoding are NumPy on arrays of some size, which leaves the
interpreter to others, and a thread is there at once, where a process imports for half a second what
it needs.
"""

import collections
import concurrent.futures
from typing import Any, Callable

from gan_mrcnn.metrics import predictions

# More would wait for the interpreter instead of a core: they take more time of CPUs, and end no
# sooner.
_NUM_THREADS = 2
# Images that are held at most until they are pasted: one of a hundred detections is 0.3 MB.
_MOST_HELD = 32


class Collector:
    """Takes detections image by image and gives the results of all, in the order they came in.

    Ends as a context manager, or with `results`; an error in a thread is raised by the next call.
    """

    def __init__(self, progress: Callable[[int], Any] = lambda count: None):
        """`progress` is called now and then with the number of images done since the last call."""
        self._pool = concurrent.futures.ThreadPoolExecutor(_NUM_THREADS, 'paste')
        self._pending: collections.deque[concurrent.futures.Future] = collections.deque()
        self._results: list[dict[str, Any]] = []
        self._progress = progress

    def __enter__(self) -> 'Collector':
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, *detections) -> None:
        """Takes one image, arguments as of `predictions.detections_to_coco`; waits if too many do.

        The arrays must not be changed afterwards.
        """
        self._pending.append(self._pool.submit(predictions.detections_to_coco, *detections))
        while self._pending and (len(self._pending) > _MOST_HELD or self._pending[0].done()):
            self._take()

    def results(self) -> list[dict[str, Any]]:
        """COCO results of all images; nothing can be added any more."""
        with self:
            while self._pending:
                self._take()
        return self._results

    def _take(self) -> None:
        self._results += self._pending.popleft().result()
        self._progress(1)
