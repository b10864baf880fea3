# SPDX-License-Identifier: Apache-2.0
"""Load on a server that answers as TF Serving does, over gRPC or REST.

    python benchmarks/serving_load.py --model served/model --images 'GLANDS/testA_*[0-9].png'
    python benchmarks/serving_load.py --url grpc://HOST:8500/model --images ...

starts the tests' stand-in server (tests/serving/stock_server.py) or asks a running one, first with
Poisson arrivals at the `--rates` (open loop), then with so many `--clients` that each wait for
their answer (closed loop). In place of that

    --batch_sizes 1 2 4 8 16   requests of so many images, one after the other, in turns
    --memory                   one rate for --minutes; is the server's memory flat?
    --swap                     a new version appears in the middle of the load; is a request lost?

Latency counts from the moment at which a request was due, not from when it was sent: a server that
stands still for a second delays all requests of that second, and all are counted. Requests that are
due while `--at_once` others are under way wait here, which counts as well.
"""

import argparse
import base64
import collections
import concurrent.futures
import glob
import http.client
import json
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from typing import NamedTuple, Optional

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import soak  # noqa: E402
from scipy import stats  # noqa: E402

from gan_mrcnn.serving import client  # noqa: E402
from gan_mrcnn.utils import cli  # noqa: E402
from tests.serving import stock_process  # noqa: E402

PERCENTILES = (50, 90, 99, 100)
# Seconds between two looks at the server's memory, and the share of a run that is its warm-up.
EVERY, WARM_UP = 10.0, 1 / 6
# Of these many means a line is fitted to the memory.
BLOCKS = 10


class Sent(NamedTuple):
    """One request. Moments are in seconds from the start of the load.

    due: when it was to be sent; begun: when it was; done: when it was answered.
    error: name of the status, '' where it was answered well.
    version: of the model that answered; 0 where the server does not say (REST).
    """

    due: float
    begun: float
    done: float
    error: str
    version: int


class Slope(NamedTuple):
    """Growth in MB an hour, and the ends of its 95% interval."""

    value: float
    low: float
    high: float


# When, and what came of it.


def arrivals(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Moments of a Poisson process of `rate` a second, in seconds from the start."""
    rng = np.random.default_rng(seed)
    # So many that fewer would be a miracle; the number within `seconds` is random, too.
    number = int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10)
    moments = np.cumsum(rng.exponential(1 / rate, number))
    return moments[moments < seconds]


def percentile(values: np.ndarray, percent: float) -> float:
    """The smallest of the values that `percent` of them do not exceed."""
    return float(np.quantile(values, percent / 100, method='inverted_cdf'))


def slope(seconds: np.ndarray, megabytes: np.ndarray) -> Slope:
    """Growth of memory, from the means of `BLOCKS` stretches of time.

    Samples that follow each other resemble each other, and an interval from them would be too
    narrow; means of whole stretches hardly do.
    """
    blocks = np.array_split(np.stack([seconds, megabytes]), BLOCKS, axis=1)
    moments, means = np.array([block.mean(axis=1) for block in blocks]).T
    line = stats.linregress(moments / 3600, means)
    half = stats.t.ppf(0.975, BLOCKS - 2) * line.stderr
    return Slope(line.slope, line.slope - half, line.slope + half)


def summary(sent: list[Sent]) -> dict:
    """Figures of one load; latencies are those of what was answered well."""
    answered = [one for one in sent if not one.error]
    errors = collections.Counter(one.error for one in sent if one.error)
    figures = {
        'sent': len(sent),
        'answered': len(answered),
        'errors': dict(errors),
        'answers_per_second': len(answered) / _length(sent),
        'most_late_to_send': max(one.begun - one.due for one in sent),
    }
    if answered:
        latencies = np.array([one.done - one.due for one in answered])
        figures['latency'] = {f'p{p}': percentile(latencies, p) for p in PERCENTILES}
    return figures


def _length(sent):
    return max(one.done for one in sent) - min(one.due for one in sent)


# Sending.


def open_loop(send, moments: np.ndarray, at_once: int) -> list[Sent]:
    """Sends request i at `moments[i]`, whether the ones before are answered or not.

    `send(i)` gives an error's name or '', and a version; see `Sent`.
    """
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        futures = []
        for number, due in enumerate(moments):
            time.sleep(max(0.0, start + due - time.perf_counter()))
            futures.append(pool.submit(_timed, send, number, start, float(due)))
    return [future.result() for future in futures]


def closed_loop(send, clients: int, seconds: float) -> list[Sent]:
    """`clients` that each send the next request when the one before is answered."""
    start = time.perf_counter()

    def one_client(number):
        sent = []
        while not sent or sent[-1].done < seconds:
            due = sent[-1].done if sent else 0.0
            sent.append(_timed(send, number + clients * len(sent), start, due))
        return sent

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [one for sent in pool.map(one_client, range(clients)) for one in sent]


def _timed(send, number, start, due):
    begun = time.perf_counter() - start
    error, version = send(number)
    return Sent(due, begun, time.perf_counter() - start, error, version)


class RestSender:
    """Sends over REST, with a connection for each thread; answers are read, not parsed."""

    def __init__(self, address: client.Address, batches: list[list[bytes]], timeout: float):
        self._host, self._timeout = address.host, timeout
        self._path = client.rest_path(address)
        self._bodies = [self._body(batch) for batch in batches]
        self._of_thread = threading.local()

    @staticmethod
    def _body(batch):
        rows = [{'image_bytes': {'b64': base64.b64encode(one).decode('ascii')}} for one in batch]
        return json.dumps({'instances': rows}).encode()

    def __call__(self, number: int) -> tuple[str, int]:
        if not hasattr(self._of_thread, 'connection'):
            connection = http.client.HTTPConnection(self._host, timeout=self._timeout)
            self._of_thread.connection = connection
        connection = self._of_thread.connection
        body = self._bodies[number % len(self._bodies)]
        try:
            connection.request('POST', self._path, body, {'Content-Type': 'application/json'})
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__, 0
        return '' if response.status == 200 else str(response.status), 0


class GrpcSender:
    """Sends over gRPC, through one channel."""

    def __init__(self, address: client.Address, batches: list[list[bytes]], timeout: float):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        self._timeout, self._error = timeout, grpc.RpcError
        options = [('grpc.max_receive_message_length', -1)]
        channel = grpc.insecure_channel(address.host, options=options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._requests = []
        for batch in batches:
            request = client.grpc_request(batch[0], address)
            request.inputs['image_bytes'].CopyFrom(tf.make_tensor_proto(batch))
            self._requests.append(request)

    def __call__(self, number: int) -> tuple[str, int]:
        request = self._requests[number % len(self._requests)]
        try:
            response = self._stub.Predict(request, timeout=self._timeout)
        except self._error as error:
            return error.code().name, 0
        return '', response.model_spec.version.value


def make_sender(options, url: str, batches: list[list[bytes]]):
    """What sends request i, with the images of batch i, and begins anew behind the last."""
    address = client.parse_url(url)
    kind = GrpcSender if address.scheme == 'grpc' else RestSender
    return kind(address, batches, options.timeout)


# Modes.


def measure_load(options, send, pid: Optional[int]) -> list[dict]:
    """A row for each rate and each number of clients."""

    def add(load, run, *arguments):
        before = cpu_seconds(pid)
        row = {'load': load, **summary(run(send, *arguments))}
        row['cpu_per_answer'] = (cpu_seconds(pid) - before) / max(row['answered'], 1)
        rows.append({**row, 'mb': resident_mb(pid)})
        print(as_line(rows[-1]), flush=True)

    names = ' '.join(f'{"p" + str(p):>8}' for p in PERCENTILES)
    print(f'{"":>12} {"answers":>9} {names}')
    rows = []
    for rate in options.rates:
        moments = arrivals(rate, options.seconds, options.seed)
        if not len(moments):
            sys.exit(f'no request is due within {options.seconds:g} s at {rate:g} a second')
        add(f'{rate:g}/s', open_loop, moments, options.at_once)
    for clients in options.clients:
        add(f'{clients} clients', closed_loop, clients, options.seconds)
    return rows


def cpu_seconds(pid: Optional[int]) -> float:
    """Time of cores that the server has taken, which other load hardly changes; nan: not known."""
    try:
        after_name = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    except OSError:
        return float('nan')
    # Of the program and, for it, of the system.
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf('SC_CLK_TCK')


def resident_mb(pid: Optional[int]) -> Optional[float]:
    """Resident memory of the server; None where it is not known which process that is."""
    sample = pid and soak.sample_process(pid)
    return sample[0] if sample else None


def as_line(row: dict) -> str:
    """A row of figures, as one of a table."""
    latency = ' '.join(f'{1000 * one:8.0f}' for one in row.get('latency', {}).values())
    errors = ', '.join(f'{count} {name}' for name, count in row['errors'].items())
    server = f'{row["cpu_per_answer"]:.3f} s of CPU, {row["mb"]:.0f} MB' if row.get('mb') else ''
    return f'{row["load"]:>12} {row["answers_per_second"]:7.2f}/s {latency} ms {server} {errors}'


def measure_batches(options, url: str, images: list[bytes], pid: Optional[int]) -> list[dict]:
    """A row for each batch size: images a second, and seconds a request of each round.

    Sizes take turns, so that other load of the machine affects all; the first round does not count.
    """
    count, senders = len(images), {}
    for size in options.batch_sizes:
        batches = [[images[(i * size + j) % count] for j in range(size)] for i in range(count)]
        senders[size] = make_sender(options, url, batches)
    seconds, cpu = ({size: [] for size in senders} for _ in range(2))
    for turn in range(options.rounds + 1):
        for size, send in senders.items():
            start, before = time.perf_counter(), cpu_seconds(pid)
            error, _ = send(turn)
            if error:
                sys.exit(f'{size} images in a request: {error}')
            if turn:
                seconds[size].append(time.perf_counter() - start)
                cpu[size].append(cpu_seconds(pid) - before)
    rows = []
    for size, taken in seconds.items():
        median, of_cpu = float(np.median(taken)), float(np.mean(cpu[size])) / size
        row = {'batch': size, 'images_per_second': size / median, 'cpu_per_image': of_cpu}
        rows.append({**row, 'seconds': taken, 'mb': resident_mb(pid)})
        print(
            f'{size:3d} images {1000 * median:8.0f} ms {size / median:7.2f} images/s '
            f'{of_cpu:.3f} s of CPU an image',
            flush=True,
        )
    return rows


class Watch:
    """Resident memory of a process, in MB, every `EVERY` seconds until `stop`."""

    def __init__(self, pid: int):
        self.samples, self._pid = [], pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        start = time.perf_counter()
        while True:
            megabytes = resident_mb(self._pid)
            if megabytes:
                self.samples.append((time.perf_counter() - start, megabytes))
            if self._over.wait(EVERY):
                return

    def stop(self) -> list[tuple[float, float]]:
        """Seconds from the start and MB of each sample."""
        self._over.set()
        self._thread.join()
        return self.samples


def measure_memory(options, send, pid: int) -> dict:
    """Memory under a constant load, after its warm-up."""
    moments = arrivals(options.rates[0], 60 * options.minutes, options.seed)
    watch = Watch(pid)
    sent = open_loop(send, moments, options.at_once)
    samples = watch.stop()
    seconds, megabytes = np.array(samples).T
    late = seconds > WARM_UP * seconds[-1]
    if late.sum() < 2 * BLOCKS:
        sys.exit(
            f'{len(samples)} samples are too few; give more than --minutes {options.minutes:g}'
        )
    growth = slope(seconds[late], megabytes[late])
    row = {
        **{'load': f'{options.rates[0]:g}/s', **summary(sent)},
        'mb_at_start': megabytes[0],
        'mb_after_warm_up': float(megabytes[late][0]),
        'mb_at_the_end': float(megabytes[-1]),
        'mb_most': float(megabytes.max()),
        'mb_per_hour': growth._asdict(),
        'samples': samples,
    }
    print(as_line(row))
    print(
        f'memory {row["mb_after_warm_up"]:.0f} MB after the warm-up, {row["mb_at_the_end"]:.0f} MB '
        f'at the end, at most {row["mb_most"]:.0f} MB; {growth.value:+.1f} MB an hour '
        f'(95%: {growth.low:+.1f} to {growth.high:+.1f}): '
        f'{"not flat" if growth.low > 0 else "flat"}'
    )
    return row


def measure_swap(options, send, folder: pathlib.Path) -> dict:
    """What happens to requests when a copy of the newest version appears as the next one."""
    number = max(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    after = options.seconds / 3
    moments = arrivals(options.rates[0], options.seconds, options.seed)
    # As an export does it: written beside, renamed when whole.
    partial = folder / f'.{number + 1}.partial'
    shutil.copytree(folder / str(number), partial)
    timer = threading.Timer(after, partial.rename, [folder / str(number + 1)])
    timer.start()
    sent = open_loop(send, moments, options.at_once)
    timer.join()
    row = {'load': f'{options.rates[0]:g}/s', **summary(sent), 'appeared': after, 'versions': {}}
    print(as_line(row))
    for version in sorted({one.version for one in sent if not one.error}):
        of_it = [one for one in sent if one.version == version and not one.error]
        row['versions'][version] = {
            'answered': len(of_it),
            'first_sent': min(one.begun for one in of_it),
            'last_answered': max(one.done for one in of_it),
        }
        print(f'version {version}: {row["versions"][version]}')
    if list(row['versions'])[-1] > number:
        # Its clock began a moment before that of the load.
        end = max(after, row['versions'][number + 1]['first_sent'])
        for name, some in (
            ('before', [one for one in sent if one.due < after]),
            ('while it loaded', [one for one in sent if after <= one.due < end]),
            ('behind', [one for one in sent if one.due >= end]),
        ):
            row[name] = summary(some) if some else None
            print(name, as_line({'load': row['load'], **row[name]}) if some else 'nothing sent')
    return row


# The program.


def read_images(pattern: str) -> list[bytes]:
    """All files of a pattern, in the order of their names."""
    paths = sorted(glob.glob(pattern))
    if not paths:
        sys.exit(f'no file is named --images {pattern}')
    return [pathlib.Path(path).read_bytes() for path in paths]


def run(options, images: list[bytes], url: str, pid: Optional[int], folder) -> object:
    """What was measured in the mode that was asked for."""
    # An answer that is not this model's ends it here, in one line.
    client.ask(client.parse_url(url), images[0], options.timeout)
    if options.batch_sizes:
        return measure_batches(options, url, images, pid)
    send = make_sender(options, url, [[image] for image in images])
    for number in range(options.warm_up):
        send(number)
    if options.memory:
        return measure_memory(options, send, pid)
    if options.swap:
        return measure_swap(options, send, folder)
    return measure_load(options, send, pid)


def parse_flags():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', help='OUT/model of an export: start a stand-in server on it')
    parser.add_argument('--url', help='ask this server: grpc://HOST:8500/model or http://...')
    parser.add_argument('--scheme', choices=('grpc', 'http'), default='grpc', help='with --model')
    parser.add_argument('--batching_parameters_file', help="with --model: the server's")
    parser.add_argument('--images', required=True, help='pattern of JPEG or PNG files')
    parser.add_argument('--rates', type=float, nargs='*', default=[0.5, 1, 2], help='a second')
    parser.add_argument('--clients', type=int, nargs='*', default=[1, 2, 4, 8])
    parser.add_argument('--seconds', type=float, default=60, help='of each load')
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument('--batch_sizes', type=int, nargs='+', metavar='N')
    mode.add_argument('--memory', action='store_true')
    mode.add_argument('--swap', action='store_true')
    parser.add_argument('--rounds', type=int, default=10, help='with --batch_sizes')
    parser.add_argument('--minutes', type=float, default=60, help='with --memory')
    parser.add_argument('--pid', type=int, help="with --memory and --url: the server's")
    parser.add_argument('--watched', help='with --swap and --url: the folder that it watches')
    parser.add_argument('--warm_up', type=int, default=2, help='requests before a load')
    parser.add_argument('--at_once', type=int, default=64, help='most requests under way')
    parser.add_argument('--timeout', type=float, default=60, help='seconds for an answer')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json', help='file for the figures')
    options = parser.parse_args()
    if (options.model is None) == (options.url is None):
        parser.error('give one of --model and --url')
    if (options.memory or options.swap) and len(options.rates) != 1:
        parser.error('--memory and --swap take one of --rates')
    if options.url and options.memory and not options.pid:
        parser.error('--memory with --url needs --pid')
    if options.url and options.swap and not options.watched:
        parser.error('--swap with --url needs --watched')
    return options


def main() -> None:
    options = parse_flags()
    cli.silence_start_up()
    images = read_images(options.images)
    if options.url:
        found = run(options, images, options.url, options.pid, pathlib.Path(options.watched or ''))
    else:
        file = options.batching_parameters_file
        flags = ['--batching_parameters_file', file] if file else []
        with tempfile.TemporaryDirectory() as folder:
            # A copy: `--swap` adds a version.
            model = pathlib.Path(shutil.copytree(options.model, f'{folder}/model'))
            server = stock_process.StockServer(model, *flags)
            try:
                found = run(options, images, server.url(options.scheme), server.pid, model)
            finally:
                server.close()
    if options.json:
        figures = {'options': vars(options), 'figures': found}
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()
