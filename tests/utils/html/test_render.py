"""Pages are whole, escape what they print, and are part of an installed package."""

import base64
import re
import subprocess
import sys

import cv2
import jinja2
import numpy as np
import pytest

from gan_mrcnn.utils.html import render
from tests import test_commands

TEMPLATE = """{% extends 'base.html.j2' %}{% import 'parts.html.j2' as parts %}
{% block content %}{{ parts.table(*table) }}{{ parts.image(image, caption) }}{% endblock %}"""


@pytest.fixture
def template(tmp_path):
    path = tmp_path / 'own.html.j2'
    path.write_text(TEMPLATE)
    return path


def values(**changes):
    return {
        'title': 'A & B',
        'notice': 'Not <real>.',
        'table': render.Table(['', 'AP'], [['<script>', 0.5], ['b', 0.25]], [1]),
        'image': render.encode_image(np.zeros((4, 6, 3), np.uint8)),
        'caption': 'a "quoted" name',
        **changes,
    }


def test_a_page_is_whole_escaped_and_needs_no_network(tmp_path, template):
    path = tmp_path / 'new' / 'index.html'
    render.write(path, template, **values())
    text = path.read_text()
    assert text.startswith('<!DOCTYPE html>') and text.rstrip().endswith('</html>')
    assert '<title>A &amp; B</title>' in text and 'width=device-width' in text
    assert '&lt;script&gt;' in text and '<script' not in text and 'Not &lt;real&gt;.' in text
    assert 'alt="a &#34;quoted&#34; name"' in text
    assert 'prefers-color-scheme: dark' in text
    assert not re.search(r'(?:src|href)="(?!data:)|@import|url\(', text)
    assert re.findall(r'<tr class="bold">.*?</tr>', text) == [
        '<tr class="bold"><td>b</td><td>0.25</td></tr>'
    ]


def test_a_name_that_is_missing_is_an_error_and_leaves_the_old_page(tmp_path, template):
    path = tmp_path / 'index.html'
    path.write_text('old')
    incomplete = values()
    del incomplete['notice']
    with pytest.raises(jinja2.UndefinedError, match='notice'):
        render.write(path, template, **incomplete)
    assert path.read_text() == 'old'


@pytest.mark.parametrize('width, shown', [(100, (100, 50)), (400, (200, 100))])
def test_images_keep_their_colours_and_are_no_wider_than_asked_for(width, shown):
    rgb = np.zeros((100, 200, 3), np.uint8)
    rgb[:, 100:] = (250, 10, 20)
    image = render.encode_image(rgb, width)
    assert (image.width, image.height) == shown
    kind, data = image.source.split(',')
    assert kind == 'data:image/jpeg;base64'
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (*shown[::-1], 3)
    np.testing.assert_allclose(decoded[10, -10, ::-1], (250, 10, 20), atol=8)
    np.testing.assert_allclose(decoded[10, 10], 0, atol=8)


def test_templates_and_style_are_in_the_built_package():
    """Without them an install has no pages; setuptools takes Python files alone unless told."""
    root = test_commands.REPOSITORY
    program = (
        'import runpy, setuptools\n'
        'made = {}\n'
        'setuptools.setup = made.update\n'
        'runpy.run_path("setup.py")\n'
        'kept = {key: made[key] for key in ("name", "packages", "package_data")}\n'
        'command = setuptools.Distribution(kept).get_command_obj("build_py")\n'
        'command.ensure_finalized()\n'
        'print(*(f"{folder}/{name}" for _, _, folder, names in command.data_files'
        ' for name in names), sep="\\n")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=root, capture_output=True, text=True, check=True
    )
    built = set(done.stdout.split())
    sources = [
        path for ending in ('j2', 'css') for path in (root / 'gan_mrcnn').rglob(f'*.{ending}')
    ]
    assert len(sources) >= 6
    missing = [
        path
        for path in sources
        if not any(name.endswith(str(path.relative_to(root))) for name in built)
    ]
    assert missing == []
