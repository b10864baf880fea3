"""benchmarks/serving_load.py: its arithmetic against independent calculations, its clocks against
servers whose times are known."""

import argparse
import os
import pathlib
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / 'benchmarks'
sys.path.insert(0, str(BENCHMARKS))

import serving_load  # noqa: E402
from serving_load import Sent  # noqa: E402


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=50),
    st.sampled_from(serving_load.PERCENTILES),
)
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values, percent):
    found = serving_load.percentile(np.array(values), percent)
    ordered = sorted(values)
    wanted = next(v for i, v in enumerate(ordered, 1) if 100 * i >= percent * len(ordered))
    assert found == wanted


def test_percentiles_of_a_hundred_are_their_numbers():
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101))
    assert [serving_load.percentile(values, p) for p in (50, 90, 99, 100)] == [50, 90, 99, 100]


def test_arrivals_are_a_poisson_process():
    moments = serving_load.arrivals(20, 500, seed=3)
    np.testing.assert_array_equal(moments, serving_load.arrivals(20, 500, seed=3))
    assert (np.diff(moments) > 0).all() and moments[0] > 0 and moments[-1] < 500
    gaps = np.diff(moments)
    assert stats.kstest(gaps, 'expon', args=(0, 1 / 20)).pvalue > 0.01
    # As many as a Poisson number of mean 20 may be in each second, not the same in all.
    in_second = np.bincount(moments.astype(int), minlength=500)
    assert 0.8 < in_second.var() / in_second.mean() < 1.2
    numbers = [len(serving_load.arrivals(1, 4, seed)) for seed in range(300)]
    assert 3.5 < np.mean(numbers) < 4.5 and 3 < np.var(numbers) < 5


def memory(rng, growth):
    """Six hundred samples of ten seconds: noise that lasts for minutes, and `growth` MB an hour."""
    seconds = np.arange(600) * 10.0
    noise = np.zeros(600)
    for i in range(1, 600):
        noise[i] = 0.8 * noise[i - 1] + rng.normal()
    return seconds, 900 + noise + growth * seconds / 3600


@pytest.mark.parametrize('growth', [0.0, 5.0])
def test_the_interval_of_the_slope_holds_it_nineteen_times_of_twenty(growth):
    rng = np.random.default_rng(0)
    slopes = [serving_load.slope(*memory(rng, growth)) for _ in range(200)]
    inside = [one.low <= growth <= one.high for one in slopes]
    assert 0.9 <= np.mean(inside) <= 0.985
    assert abs(np.mean([one.value for one in slopes]) - growth) < 0.5


def test_the_slope_of_a_line_is_the_lines():
    seconds = np.arange(100.0)
    found = serving_load.slope(seconds, 100 + 36 * seconds / 3600)
    np.testing.assert_allclose(found, 36, rtol=1e-6)


def test_a_summary_counts_errors_apart():
    sent = [
        Sent(0.0, 0.0, 0.5, '', 1),
        Sent(1.0, 1.2, 1.3, '', 1),
        Sent(2.0, 2.0, 2.01, 'UNAVAILABLE', 0),
        Sent(3.0, 3.0, 4.0, '', 2),
    ]
    found = serving_load.summary(sent)
    assert (found['sent'], found['answered']) == (4, 3)
    assert found['errors'] == {'UNAVAILABLE': 1}
    assert found['answers_per_second'] == pytest.approx(3 / 4)
    assert found['most_late_to_send'] == pytest.approx(0.2)
    assert found['latency'] == pytest.approx({'p50': 0.5, 'p90': 1.0, 'p99': 1.0, 'p100': 1.0})
    assert 'latency' not in serving_load.summary([Sent(0.0, 0.0, 1.0, '503', 0)])


def test_a_server_that_stands_still_delays_all_that_was_due_meanwhile():
    """No coordinated omission: also where the sender itself had to wait with them."""
    lock = threading.Lock()

    def send(number):
        with lock:
            time.sleep(0.5 if number == 0 else 0.0)
        return '', 1

    moments = np.array([0.0, 0.1, 0.2, 0.3, 1.0])
    for at_once in (1, 5):
        sent = serving_load.open_loop(send, moments, at_once)
        latencies = [one.done - one.due for one in sent]
        assert all(
            late > wanted - 0.01 for late, wanted in zip(latencies, [0.5, 0.4, 0.3, 0.2, 0.0])
        )
        assert [one.due for one in sent] == moments.tolist()
        # It was at rest again by then.
        assert latencies[-1] < 0.4


def test_clients_of_a_closed_loop_wait_for_their_answers():
    numbers, under_way, most = [], [0], [0]
    lock = threading.Lock()

    def send(number):
        with lock:
            numbers.append(number)
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        with lock:
            under_way[0] -= 1
        return '', 1

    sent = serving_load.closed_loop(send, 3, 0.5)
    assert most == [3] and len(set(numbers)) == len(numbers) == len(sent) <= 33
    assert all(one.done - one.due >= 0.05 for one in sent)


def options(**values):
    return argparse.Namespace(**{'seed': 0, 'at_once': 8, **values})


def test_a_change_of_version_is_seen_and_no_request_is_lost(tmp_path, capsys):
    """The server is one that has the highest number as soon as it is there."""
    (tmp_path / '1').mkdir()
    (tmp_path / '1' / 'saved_model.pb').write_bytes(b'graph')

    def send(number):
        time.sleep(0.01)
        return '', max(int(path.name) for path in tmp_path.iterdir() if path.name.isdecimal())

    found = serving_load.measure_swap(options(seconds=1.5, rates=[40]), send, tmp_path)
    assert (tmp_path / '2' / 'saved_model.pb').read_bytes() == b'graph'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']
    old, new = found['versions'][1], found['versions'][2]
    assert old['answered'] + new['answered'] == found['answered'] == found['sent'] > 30
    assert found['appeared'] == 0.5 <= new['last_answered']
    parts = [found[name] for name in ('before', 'while it loaded', 'behind') if found[name]]
    assert sum(part['sent'] for part in parts) == found['sent']
    assert 'version 2' in capsys.readouterr().out


@pytest.mark.parametrize('growth, word', [(0, ': flat'), (36000, 'not flat'), (-36000, ': flat')])
def test_memory_that_grows_is_told_from_memory_that_does_not(growth, word, monkeypatch, capsys):
    monkeypatch.setattr(serving_load, 'EVERY', 0.01)
    start = time.perf_counter()
    monkeypatch.setattr(
        serving_load,
        'resident_mb',
        lambda pid: 500 + growth * (time.perf_counter() - start) / 3600,
    )
    found = serving_load.measure_memory(options(rates=[10], minutes=2 / 60), lambda i: ('', 1), 1)
    assert word in capsys.readouterr().out
    assert found['mb_per_hour']['value'] == pytest.approx(growth, rel=0.2, abs=1e-6)
    assert found['answered'] == found['sent'] > 5 and len(found['samples']) > 25


def test_batches_take_turns_and_hold_that_many_images(monkeypatch):
    asked = []

    def make_sender(_, __, batches):
        def send(number):
            asked.append(batches[number % len(batches)])
            time.sleep(0.02 + 0.01 * len(asked[-1]))
            return '', 1

        return send

    monkeypatch.setattr(serving_load, 'make_sender', make_sender)
    rows = serving_load.measure_batches(
        options(batch_sizes=[1, 4], rounds=3), '', [b'a', b'b', b'c'], None
    )
    assert asked[:4] == [[b'a'], [b'a', b'b', b'c', b'a'], [b'b'], [b'b', b'c', b'a', b'b']]
    assert [len(one) for one in asked] == [1, 4] * 4
    # 1 in 0.03 s, 4 in 0.06 s, at best.
    assert rows[0]['images_per_second'] <= 1 / 0.03 and rows[1]['images_per_second'] <= 4 / 0.06
    assert [len(row['seconds']) for row in rows] == [3, 3]


def test_the_time_of_a_process_is_that_of_its_cores():
    before = serving_load.cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - before[1] < 0.2:
        pass
    # To two ticks.
    assert serving_load.cpu_seconds(os.getpid()) - before[0] == pytest.approx(0.2, abs=0.03)
    assert np.isnan(serving_load.cpu_seconds(None))


def test_a_request_of_several_images_is_json_with_a_row_for_each():
    address = serving_load.client.parse_url('http://127.0.0.1:1/v1/models/m')
    send = serving_load.RestSender(address, [[b'one']], 1)
    assert send._bodies == [b'{"instances": [{"image_bytes": {"b64": "b25l"}}]}']
    # Nobody listens there.
    assert send(0) == ('ConnectionRefusedError', 0)
