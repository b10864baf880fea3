"""The client against a server that knows nothing of this package, over REST and gRPC."""

import http.server
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from gan_mrcnn.prediction import predictor
from gan_mrcnn.serving import client
from gan_mrcnn.utils.errors import UserError
from tests import programs
from tests.serving.tiny import photo

SCHEMES = ('http', 'grpc')


@pytest.fixture(scope='module')
def image_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('image') / 'photo.png'
    Image.fromarray(photo((60, 80))).save(path)
    return path


def split(outputs):
    (found,) = predictor.split_batch({name: value[np.newaxis] for name, value in outputs.items()})
    return found


def assert_found(outputs, wanted):
    for name, value in zip(wanted._fields, split(outputs)):
        tolerance = 1e-2 if name == 'boxes' else 1e-4
        np.testing.assert_allclose(value, getattr(wanted, name), atol=tolerance, err_msg=name)
    assert len(wanted.scores) > 1


@pytest.mark.parametrize('scheme', SCHEMES)
def test_the_response_is_the_models(scheme, server, predictor, image_file):
    _, encoded = client.encode(image_file)
    assert encoded == image_file.read_bytes()
    (wanted,) = predictor.detect([encoded])
    outputs = client.ask(client.parse_url(server.url(scheme)), encoded, 60)
    assert_found(outputs, wanted)
    for name, dtype in client.OUTPUTS.items():
        assert outputs[name].dtype == dtype, name


def test_a_version_can_be_chosen(server, image_file):
    encoded = image_file.read_bytes()
    url = server.url('http') + '/versions/1'
    assert client.ask(client.parse_url(url), encoded, 60)['num_detections'] > 0
    with pytest.raises(UserError, match='answers 404'):
        client.ask(client.parse_url(server.url('http') + '/versions/2'), encoded, 60)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_bad_image_is_answered_in_one_line_and_the_server_lives(scheme, server, image_file):
    address = client.parse_url(server.url(scheme))
    for bad in (b'', b'no image', image_file.read_bytes()[:500]):
        with pytest.raises(UserError, match='image.*0.*of the request') as error:
            client.ask(address, bad, 60)
        assert '\n' not in str(error.value)
    assert server.is_alive()
    assert client.ask(address, image_file.read_bytes(), 60)['num_detections'] > 0


@pytest.mark.parametrize('scheme', SCHEMES)
def test_no_server_is_an_error_that_names_the_address(scheme):
    with socket.socket() as unused:
        unused.bind(('127.0.0.1', 0))
        port = unused.getsockname()[1]
        place = 'v1/models/model' if scheme == 'http' else 'model'
        address = client.parse_url(f'{scheme}://127.0.0.1:{port}/{place}')
        with pytest.raises(UserError, match=str(port)) as error:
            client.ask(address, b'', 5)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'url, wanted',
    [
        ('http://h:8501/v1/models/m', ('http', 'h:8501', 'm', None, None)),
        ('https://h/v1/models/m:predict', ('https', 'h', 'm', None, None)),
        ('http://h:8501/v1/models/m/versions/12:predict', ('http', 'h:8501', 'm', 12, None)),
        ('http://h/v1/models/m/labels/stable:predict', ('http', 'h', 'm', None, 'stable')),
        ('grpc://h:8500/m', ('grpc', 'h:8500', 'm', None, None)),
        ('grpc://h:8500/m/versions/3', ('grpc', 'h:8500', 'm', 3, None)),
        ('grpc://h:8500/m/labels/canary', ('grpc', 'h:8500', 'm', None, 'canary')),
    ],
)
def test_urls(url, wanted):
    assert client.parse_url(url) == wanted


def test_a_version_or_a_label_is_what_is_asked_for():
    # As TF Serving's `kPredictionApiGegex` reads a path.
    asked = re.compile(
        r'/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)'
    )
    for chosen, wanted in (
        ('', (None, None)),
        ('/versions/7', ('7', None)),
        ('/labels/stable', (None, 'stable')),
    ):
        address = client.parse_url(f'http://h/v1/models/m{chosen}')
        found = asked.fullmatch(client.rest_path(address))
        assert found.groups() == ('m', *wanted, 'predict')
        spec = client.grpc_request(b'', address).model_spec
        assert spec.version_label == (wanted[1] or '')
        assert spec.HasField('version') == (wanted[0] is not None)


@pytest.mark.parametrize('url', ['h:8501', 'http://h:8501', 'http://h/m', 'grpc://h/v1/models/m'])
def test_other_urls_are_refused(url):
    with pytest.raises(UserError, match='neither'):
        client.parse_url(url)


def test_the_command_draws_and_needs_no_tensorflow(
    server, predictor, image_file, tmp_path, exported
):
    script = (
        'import sys\n'
        'for name in ("tensorflow", "official", "tensorflow_serving", "grpc"):\n'
        '    sys.modules[name] = None\n'
        'from gan_mrcnn.__main__ import main\n'
        'main()\n'
    )
    done = subprocess.run(
        [
            *(
                sys.executable,
                '-c',
                script,
                'client',
                '--url',
                server.url('http'),
                '--out',
                str(tmp_path),
            ),
            *('--class_names', str(exported.version / 'assets/class_names.txt'), str(image_file)),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    (found,) = predictor.detect([image_file.read_bytes()])
    shown = int(np.sum(found.scores >= 0.5))
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + shown > 1
    name = predictor.card.class_names[found.classes[0] - 1]
    assert lines[1].split()[:2] == [name, f'{found.scores[0]:.2f}']
    drawn = np.asarray(Image.open(tmp_path / 'photo.detections.png'))
    assert drawn.shape == (60, 80, 3) and (drawn != photo((60, 80))).any()


def test_masks_are_drawn_where_they_are():
    outputs = {
        'num_detections': np.int32(2),
        'detection_scores': np.array([0.9, 0.3, 0], np.float32),
        'detection_classes': np.array([1, 1, 0], np.int32),
        'detection_boxes': np.array([[50, 60, 150, 260], [160, 0, 190, 80], [0] * 4], np.float32),
        'detection_masks': np.ones([3, 28, 28], np.float32),
    }
    pixels = np.full((200, 300, 3), 200, np.uint8)
    changed = (client.draw(pixels, outputs, 0.5) != pixels).any(-1)
    box = np.zeros((200, 300), bool)
    box[50:150, 60:260] = True
    assert not changed[~box].any()
    # The corners of a stretched mask are rounded.
    assert changed[box].mean() > 0.99
    assert not (client.draw(pixels, outputs, 0.95) != pixels).any()


def test_an_image_that_exif_rotates_is_rotated_before_it_is_sent(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo((60, 80))).save(tmp_path / 'a.jpg', quality=95, exif=exif)
    pixels, encoded = client.encode(tmp_path / 'a.jpg')
    assert pixels.shape == (80, 60, 3)
    np.testing.assert_array_equal(tf.io.decode_image(encoded), pixels)


def free_port():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


@pytest.mark.skipif(
    shutil.which('tensorflow_model_server') is None, reason='tensorflow_model_server is not here'
)
def test_the_real_server_answers(exported, predictor, image_file):
    rest, grpc = free_port(), free_port()
    command = ['tensorflow_model_server', '--model_name=model', f'--rest_api_port={rest}']
    command += [f'--port={grpc}', f'--model_base_path={exported.model.resolve()}']
    with subprocess.Popen(command) as process:
        try:
            _wait_until_available(f'http://127.0.0.1:{rest}/v1/models/model')
            (wanted,) = predictor.detect([image_file.read_bytes()])
            for url in (
                f'http://127.0.0.1:{rest}/v1/models/model',
                f'grpc://127.0.0.1:{grpc}/model',
            ):
                outputs = client.ask(client.parse_url(url), image_file.read_bytes(), 60)
                assert_found(outputs, wanted)
                with pytest.raises(UserError, match='of the request'):
                    client.ask(client.parse_url(url), b'no image', 60)
        finally:
            process.terminate()


def _wait_until_available(url, seconds=60):
    for _ in range(seconds * 2):
        try:
            with urllib.request.urlopen(url) as response:
                (version,) = json.loads(response.read())['model_version_status']
                if version['state'] == 'AVAILABLE':
                    return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.5)
    raise TimeoutError(f'{url} is not there after {seconds} s')


@pytest.mark.skipif(shutil.which('curl') is None, reason='curl is not here')
def test_the_curl_line_of_the_page_works_as_it_stands(server, image_file):
    text = pathlib.Path(__file__).parents[2].joinpath('docs/serving.md').read_text()
    line = text[text.index('(echo') :]
    line = line[: line.index(':predict') + len(':predict')]
    line = line.replace('http://localhost:8501/v1/models/model', server.url('http'))
    command = ['bash', '-c', line.replace('image.png', str(image_file))]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    outputs = client.ask(client.parse_url(server.url('http')), image_file.read_bytes(), 60)
    assert_found(client.read_rest_response(answer), split(outputs))


class Canned(http.server.BaseHTTPRequestHandler):
    """Answers every request with `body`."""

    body, status = b'', 200

    def do_POST(self):
        self.rfile.read(int(self.headers['Content-Length']))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


@pytest.fixture
def canned():
    """A server, and its URL; `Canned.body` is what it answers."""
    with http.server.HTTPServer(('127.0.0.1', 0), Canned) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{running.server_port}/v1/models/model'
        running.shutdown()


GOOD = {
    'num_detections': 1,
    'detection_scores': [0.9, 0.0],
    'detection_classes': [1, 0],
    'detection_boxes': [[1, 2, 9, 9], [0, 0, 0, 0]],
    'detection_masks': np.ones([2, 4, 4]).tolist(),
}


@pytest.mark.parametrize(
    'answer',
    [
        *([], 5, 'x', None, {'predictions': []}, {'predictions': [1]}, {'predictions': 'x'}),
        {'predictions': [GOOD, GOOD]},
        {'predictions': {'scores': [[0.1]]}},
        {'outputs': GOOD},
        *(
            {'predictions': [{**GOOD, name: value}]}
            for name, value in (
                *(('num_detections', 3), ('num_detections', -1), ('num_detections', [1])),
                *(('detection_boxes', [[1, 2, 3]]), ('detection_boxes', 'x')),
                *(('detection_scores', [0.9]), ('detection_scores', [None, 1])),
                *(('detection_masks', [[[1.0]]]), ('detection_masks', [[], []])),
                *(('detection_classes', [10**30, 1]), ('detection_boxes', [[1e999] * 4] * 2)),
            )
        ),
    ],
    ids=str,
)
def test_another_models_answer_is_one_line(answer, canned, image_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Canned, 'body', json.dumps(answer).encode())
    done = programs.run('client', '--url', canned, '--out', tmp_path / 'out', image_file)
    line = programs.refusal(done, 'client')
    assert 'does not answer as this model would' in line and canned in line
    assert not programs.files_in(tmp_path / 'out')


def test_a_good_answer_is_drawn_and_an_error_is_quoted(canned, image_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Canned, 'body', json.dumps({'predictions': [GOOD]}).encode())
    done = programs.run('client', '--url', canned, '--out', tmp_path / 'out', image_file)
    assert done.status == 0 and 'class 1 0.90 [1.0, 2.0, 9.0, 9.0]' in done.out
    assert programs.files_in(tmp_path / 'out') == {'photo.detections.png'}
    monkeypatch.setattr(Canned, 'status', 500)
    for body in (b'{"error": ["a\\nb"]}', b'[' * 5000, b'\xff', b''):
        monkeypatch.setattr(Canned, 'body', body)
        done = programs.run('client', '--url', canned, '--out', tmp_path / 'out', image_file)
        assert 'answers 500' in programs.refusal(done, 'client')


def test_two_files_do_not_become_one(image_file, tmp_path, canned, monkeypatch):
    monkeypatch.setattr(Canned, 'body', json.dumps({'predictions': [GOOD]}).encode())
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sub').mkdir()
    for name in ('x.png', 'sub/x.png', 'y.png', 'y.detections.png'):
        shutil.copy(image_file, tmp_path / name)
    (tmp_path / 'x.jpg').write_bytes(b'')
    before = (tmp_path / 'y.detections.png').read_bytes()
    for files in (('x.png', 'sub/x.png'), ('x.jpg', 'x.png'), ('y.png', 'y.detections.png')):
        line = programs.refusal(programs.run('client', '--url', canned, *files), 'client')
        assert files[0] in line and files[1] in line
    assert (tmp_path / 'y.detections.png').read_bytes() == before
    assert not (tmp_path / 'x.detections.png').exists()
    # One file, named twice, is one.
    done = programs.run('client', '--url', canned, 'x.png', './x.png', tmp_path / 'x.png')
    assert done.status == 0 and done.out.count('x.detections.png') == 1
