"""The stand-in for TF Serving: versions that come and go, batching, figures for Prometheus."""

import concurrent.futures
import json
import pathlib
import re
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format

from tests.serving import stock_process, tiny

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import config_messages  # noqa: E402
import stock_versions  # noqa: E402

# Long enough for all threads of a test to arrive, however busy the machine is.
BATCHING = """
max_batch_size { value: 3 }
batch_timeout_micros { value: 20000000 }
num_batch_threads { value: 1 }
allowed_batch_sizes: 3
"""


def save(folder, factor):
    """A model of two signatures, each of one input whose rows must not be negative."""

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(float(factor))

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name='x')])
        def double(self, x):
            bad = tf.where(tf.reduce_any(x < 0, axis=1))[:, 0]
            good = tf.debugging.Assert(tf.size(bad) == 0, ['row', bad, 'of the request is bad'])
            with tf.control_dependencies([good]):
                rows = tf.fill([tf.shape(x)[0]], tf.shape(x)[0])
            return {'y': self.factor * x, 'rows': rows}

        @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name='x')])
        def one(self, x):
            single = tf.debugging.Assert(tf.shape(x)[0] == 1, ['one row a request'])
            with tf.control_dependencies([single]):
                return {'y': tf.identity(x)}

    model = Model()
    signatures = {'serving_default': model.double, 'one': model.one}
    tf.saved_model.save(model, str(folder), signatures)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """Two versions, in a folder that nothing watches."""
    folder = tmp_path_factory.mktemp('saved')
    save(folder / '1', 2)
    save(folder / '2', 3)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A folder with the first version."""
    shutil.copytree(saved / '1', tmp_path / 'model' / '1')
    return tmp_path / 'model'


def at_once(function, inputs, key='x'):
    """Outputs, or the error, of each input, all asked for at the same time."""
    barrier = threading.Barrier(len(inputs))

    def call(x):
        barrier.wait()
        try:
            return function(**{key: tf.constant(x)})
        except tf.errors.OpError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(inputs)) as pool:
        return list(pool.map(call, inputs))


def batched(folder, name, queue, parameters=BATCHING):
    model = tf.saved_model.load(str(folder))
    parameters = text_format.Parse(parameters, config_messages.BatchingParameters())
    return model, stock_versions.batched(model.signatures[name], parameters, queue)


def test_requests_are_joined_and_each_gets_its_own_rows(saved):
    _model, function = batched(saved / '1', 'serving_default', 'joined')
    inputs = [[[1.0, 2.0]], [[3.0, 4.0]], [[5.0, 6.0]]]
    for given, outputs in zip(inputs, at_once(function, inputs)):
        assert outputs['y'].numpy().tolist() == [[2 * value for value in given[0]]]
        assert outputs['rows'].numpy().tolist() == [3]
    # Of the largest size already: it waits for no other.
    whole = function(x=tf.constant([[1.0]] * 3))
    assert whole['rows'].numpy().tolist() == [3, 3, 3]


def test_requests_to_two_versions_are_not_joined(saved):
    # Three rows make a batch; those of one version alone do not.
    apart = BATCHING.replace('20000000', '1000000').replace('allowed_batch_sizes: 3', '')
    models = [batched(saved / n, 'serving_default', f'version_{n}', apart) for n in ('1', '2', '1')]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(function, x=tf.constant([[1.0]])) for _, function in models]
        found = [one.result() for one in asked]
    assert [float(one['y'][0, 0]) for one in found] == [2.0, 3.0, 2.0]
    assert all(int(one['rows'][0]) < 3 for one in found)


def test_a_bad_row_fails_the_requests_of_others_under_another_number(saved):
    """Why docs/serving_production.md advises against batching in the server."""
    _model, function = batched(saved / '1', 'serving_default', 'bad')
    answers = at_once(function, [[[1.0]], [[-1.0]], [[2.0]]])
    assert all(isinstance(answer, tf.errors.InvalidArgumentError) for answer in answers)
    assert len({re.search(r'\[row\] \[+(\d)', str(answer))[1] for answer in answers}) == 1


@pytest.mark.parametrize(
    'name, inputs',
    [
        ('one', [[[1.0]], [[2.0]], [[3.0]]]),
        ('serving_default', [[[1.0]], [[1.0, 2.0]], [[1.0, 2.0, 3.0]]]),
    ],
    ids=['one row a request', 'rows of several lengths'],
)
def test_what_cannot_be_joined_fails(saved, name, inputs):
    model, function = batched(saved / '1', name, f'apart_{name}')
    answers = at_once(function, inputs)
    assert all(isinstance(answer, tf.errors.OpError) for answer in answers)
    alone = [model.signatures[name](x=tf.constant(x))['y'].shape for x in inputs]
    assert len(alone) == 3


def test_of_the_networks_signatures_encoded_images_alone_can_be_joined(exported):
    photos = [tiny.photo(size, seed) for seed, size in enumerate([(60, 80), (33, 100), (48, 48)])]
    files = [[tf.io.encode_png(one).numpy()] for one in photos]
    model, function = batched(exported.version, 'serving_default', 'encoded')
    for file, outputs in zip(files, at_once(function, files, 'image_bytes')):
        alone = model.signatures['serving_default'](image_bytes=tf.constant(file))
        assert set(outputs) == set(alone) and alone['num_detections'][0] > 1
        for name, value in alone.items():
            np.testing.assert_allclose(outputs[name], value, atol=1e-2, err_msg=name)
    for name, key, inputs in (
        ('full_masks', 'image_bytes', files),
        ('image_tensor', 'image_tensor', [one[np.newaxis] for one in photos]),
    ):
        _model, function = batched(exported.version, name, name)
        answers = at_once(function, inputs, key)
        assert all(isinstance(answer, tf.errors.OpError) for answer in answers), name


def test_a_version_goes_when_its_requests_have_ended(model, saved):
    versions = stock_versions.Versions(model)
    versions.poll()
    assert versions.states() == {1: 'AVAILABLE'}
    with versions.use() as (number, signatures):
        assert number == 1
        shutil.copytree(saved / '2', model / '2')
        polling = threading.Thread(target=versions.poll)
        polling.start()
        while versions.states().get(1) != 'UNLOADING':
            time.sleep(0.01)
        # The new one answers already, and the old one what it was asked before.
        assert versions.states()[2] == 'AVAILABLE'
        with versions.use() as (newest, _):
            assert newest == 2
        with pytest.raises(stock_versions.NoVersionError), versions.use(1):
            pass
        outputs = signatures['serving_default'](x=tf.constant([[1.0]]))
        assert float(outputs['y'][0, 0]) == 2 and polling.is_alive()
    polling.join(20)
    assert versions.states() == {1: 'END', 2: 'AVAILABLE'}


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(model):
    versions = stock_versions.Versions(model)
    versions.poll()
    (model / '7').mkdir()
    with pytest.raises(OSError):
        versions.poll()
    versions.poll()
    assert versions.states() == {1: 'AVAILABLE', 7: 'END'}
    with versions.use() as (number, _):
        assert number == 1


def get(url):
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask(server, value, version=''):
    body = json.dumps({'instances': [{'x': [value]}]}).encode()
    request = urllib.request.Request(f'{server.url("http")}{version}:predict', body)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read())['predictions'][0]['y'][0]


def test_the_server_changes_versions_and_counts(model, saved):
    server = stock_process.StockServer(model, '--file_system_poll_wait_seconds', 0.1)
    try:
        url = server.url('http')
        assert ask(server, 5) == 10
        with pytest.raises(urllib.error.HTTPError, match='400'):
            ask(server, -1)
        assert get(f'{url}/metadata')[0] == get(url)[0] == 200
        assert get(f'{url}/versions/2/metadata')[0] == 404
        # As an export appears: under another name first.
        shutil.copytree(saved / '2', model / '.2.partial')
        (model / '.2.partial').rename(model / '2')
        until = time.monotonic() + 60
        while 'END' not in get(url)[1] and time.monotonic() < until:
            time.sleep(0.05)
        assert ask(server, 5) == 15
        # The status of a version that is gone is still answered; metadata tell it.
        assert get(f'{url}/versions/1')[0] == 200
        assert get(f'{url}/versions/1/metadata')[0] == 404
        with pytest.raises(urllib.error.HTTPError, match='404'):
            ask(server, 5, '/versions/1')
        text = get(url[: url.index('/v1')] + '/monitoring/prometheus/metrics')[1]
    finally:
        server.close()
    counts = dict(re.findall(r'request_count\{model_name="model",status="(\w+)"\} (\d+)', text))
    assert counts == {'OK': '2', 'INVALID_ARGUMENT': '1', 'NOT_FOUND': '1'}
    labels = r'model_name="model",API="predict",entrypoint="REST"'
    buckets = [int(n) for n in re.findall(rf'_bucket\{{{labels},le="[^"]+"\}} (\d+)', text)]
    assert len(buckets) == 34 and buckets == sorted(buckets) and buckets[-1] == 2
    assert re.search(rf'request_latency_count\{{{labels}\}} 2\n', text)
