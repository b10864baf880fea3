"""Results that threads make are those of a loop over the images, in its order; they end cleanly."""

import threading
import time

import numpy as np
import pytest

from gan_mrcnn.metrics import collector, predictions


def make_images(number):
    """Arguments of `detections_to_coco` for images of different sizes and numbers of detections."""
    rng = np.random.default_rng(number)
    images = []
    for image_id in range(number):
        size = rng.integers(20, 200, 2)
        corners = rng.uniform(-0.2, 1, [30, 2]) * size
        boxes = np.concatenate([corners, corners + rng.uniform(0, 0.6, [30, 2]) * size], 1)
        scores = np.where(np.arange(30) < rng.integers(0, 30), rng.random(30), 0)
        info = [size, size * 2.0, [2, 2], [0, 0]]
        images.append(
            (image_id, boxes * 2, scores, rng.integers(1, 4, 30), rng.random([30, 28, 28]), info)
        )
    return images


def no_new_threads(before):
    """Whether the threads that `before` has not seen have ended."""
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    return not set(threading.enumerate()) - before


def test_threads_give_what_a_loop_gives_in_its_order(monkeypatch):
    # Fewer images are held than there are, so that `add` has to wait.
    monkeypatch.setattr(collector, '_MOST_HELD', 4)
    images, before, progress = make_images(40), set(threading.enumerate()), []
    one_after_another = [
        result for image in images for result in predictions.detections_to_coco(*image)
    ]
    with collector.Collector(progress.append) as found:
        for image in images:
            found.add(*image)
        assert found.results() == one_after_another
    assert len(one_after_another) > 200 and sum(progress) == 40
    assert no_new_threads(before)


def test_no_more_images_are_held_than_said(monkeypatch):
    waiting, released = [], threading.Event()

    def paste(number):
        released.wait(10)
        return [number]

    monkeypatch.setattr(predictions, 'detections_to_coco', paste)

    def feed():
        with collector.Collector() as found:
            for number in range(100):
                waiting.append(number)
                found.add(number)
            waiting.append(found.results())

    feeder = threading.Thread(target=feed)
    feeder.start()
    deadline = time.monotonic() + 10
    while len(waiting) < collector._MOST_HELD + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(waiting) == collector._MOST_HELD + 1
    released.set()
    feeder.join(10)
    assert waiting[-1] == list(range(100))


@pytest.mark.parametrize('error', [ValueError('of a thread'), KeyboardInterrupt()])
def test_an_error_ends_the_threads_and_leaves_what_waits(monkeypatch, error):
    monkeypatch.setattr(collector, '_NUM_THREADS', 1)
    before, done = set(threading.enumerate()), []

    def paste(number):
        done.append(number)
        time.sleep(0.05)
        if number == 2 and isinstance(error, ValueError):
            raise error
        return []

    monkeypatch.setattr(predictions, 'detections_to_coco', paste)
    with pytest.raises(type(error)), collector.Collector() as found:
        for number in range(15):
            found.add(number)
        if isinstance(error, KeyboardInterrupt):
            raise error
        found.results()
    assert no_new_threads(before) and len(done) < 15
