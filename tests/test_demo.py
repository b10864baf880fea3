"""The page of `gan-mrcnn demo`: what it shows and gives, and the page itself in a browser."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from gan_mrcnn import api, demo
from gan_mrcnn.prediction import image_files, model_card
from gan_mrcnn.prediction.objects import Object
from gan_mrcnn.utils import cli
from tests import programs
from tests.serving.tiny import photo


def make_result(height=40, width=60):
    card = model_card.ModelCard(
        ('gland', 'debris'), (1, 2), 0.5, (64, 64), 32, (0,), (1,), 'c', 1, '1'
    )
    objects = [
        Object(1, 0.9, (2.0, 3.0, 12.0, 23.0), 2, 3, np.ones((10, 20), bool)),
        Object(2, 0.4, (20.0, 30.0, 25.0, 36.0), 20, 30, np.ones((5, 6), bool)),
    ]
    source = image_files.Source(pathlib.Path('/uploads/of/others/slide 1.png'), 'slide 1')
    return api.Result(image_files.Result(source, photo((height, width)), objects), card)


def test_the_slider_leaves_out_objects_and_not_the_network():
    result = make_result()
    assert demo.summary(result) == '2 objects: 1 gland, 1 debris.'
    assert demo.table(result) == [[1, 'gland', 0.9, 200], [2, 'debris', 0.4, 30]]
    kept = result.at_least(0.5)
    assert demo.summary(kept) == '1 objects: 1 gland.'
    assert demo.table(kept) == [[1, 'gland', 0.9, 200]]
    assert demo.summary(result.at_least(0.95)) == '0 objects.'


def test_files_are_of_the_image_and_tell_no_path(tmp_path):
    pytest.importorskip('pandas', reason='the table is written by pandas')
    outlines, labels, rows = map(pathlib.Path, demo.write(make_result(), str(tmp_path)))
    assert [path.name for path in (outlines, labels, rows)] == [
        'slide 1.geojson',
        'slide 1_labels.png',
        'slide 1.csv',
    ]
    assert len(json.loads(outlines.read_text())['features']) == 2
    assert np.bincount(cv2.imread(str(labels), -1).ravel()).tolist() == [2400 - 230, 200, 30]
    assert rows.read_text().splitlines()[1].startswith('slide 1.png,1,gland,0.9,200,2.0,3.0')
    assert '/uploads' not in ''.join(path.read_text() for path in (outlines, rows))


def test_a_large_picture_is_shown_smaller():
    assert demo.shown(make_result(1000, 4000)).shape == (400, demo.SHOWN, 3)
    assert demo.shown(make_result()).shape == (40, 60, 3)


def test_without_gradio_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(cli.importlib.util, 'find_spec', lambda name: None)
    done = programs.run('demo', '--model', 'x')
    assert "pip install 'gan-mrcnn[demo]'" in programs.refusal(done, 'demo')


@pytest.fixture(scope='module')
def address(exported):
    """Of the page with a tiny network, in a process of its own."""
    pytest.importorskip('gradio', reason="pip install 'gan-mrcnn[demo]'")
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    flags = ('--model', str(exported.model), '--port', str(port))
    with subprocess.Popen(
        [sys.executable, '-m', 'gan_mrcnn', 'demo', *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3'},
    ) as process:
        lines = iter(process.stdout.readline, '')
        assert any(f'http://localhost:{port} shows the page' in line for line in lines)
        yield f'http://127.0.0.1:{port}'
        process.send_signal(2)
        assert process.wait(60) == 130


@pytest.fixture(scope='module')
def browser():
    playwright = pytest.importorskip('playwright.sync_api', reason='drives the browser')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    if chromium is None:
        pytest.skip('no Chromium is installed')
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield opened
        opened.close()


@pytest.mark.slow
def test_an_image_is_shown_with_its_objects(address, browser, tmp_path):
    Image.fromarray(photo((120, 160), 1)).save(tmp_path / 'a picture.png')
    page = browser.new_page()
    elsewhere = []
    page.on('request', lambda sent: elsewhere.append(sent.url))
    page.goto(address)
    page.set_input_files('input[type=file]', tmp_path / 'a picture.png', timeout=60_000)
    picture = page.locator('img').first
    picture.wait_for(timeout=120_000)
    # As large as the image that was given.
    size = picture.evaluate('one => one.decode().then(() => [one.naturalHeight, one.naturalWidth])')
    assert size == [120, 160]
    assert page.get_by_text('a picture.geojson').count() or page.locator('a[download]').count() >= 3
    kept = [url for url in elsewhere if not url.startswith((address, 'data:', 'blob:'))]
    assert kept == []
    page.close()


@pytest.mark.slow
def test_a_text_file_is_refused_with_one_line(address, browser, tmp_path):
    (tmp_path / 'notes.txt').write_text('no image\n')
    page = browser.new_page()
    page.goto(address)
    page.set_input_files('input[type=file]', tmp_path / 'notes.txt', timeout=60_000)
    said = page.get_by_text('notes.txt cannot be read')
    said.first.wait_for(timeout=60_000)
    assert '/' not in said.first.inner_text().split('cannot')[0]
    page.close()


@pytest.mark.slow
def test_it_answers_this_machine_alone(address):
    port = int(address.rsplit(':', 1)[1])
    # Of Linux's own table: local address and state 0A, listening.
    for line in pathlib.Path('/proc/net/tcp').read_text().splitlines()[1:]:
        local, _, state = line.split()[1:4]
        if state == '0A' and int(local.split(':')[1], 16) == port:
            assert local.split(':')[0] == '0100007F'
            break
    else:
        pytest.fail(f'nobody listens on {port}')


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(exported):
    pytest.importorskip('gradio', reason="pip install 'gan-mrcnn[demo]'")
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                *(sys.executable, '-m', 'gan_mrcnn', 'demo'),
                *('--model', str(exported.model), '--port', str(port)),
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 2
    assert f'--port {port} cannot be had' in done.stderr.splitlines()[-1]
