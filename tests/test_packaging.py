"""Packaging: requirements and locks agree, and imports keep to their limits."""

import ast
import functools
import os
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# The two sets of packages, by TensorFlow, and the Pythons for which each lock is.
_LOCKS = [('2.15', python) for python in ('3.9', '3.10', '3.11')]
_LOCKS += [('2.20', python) for python in ('3.10', '3.11', '3.12', '3.13')]
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SHIPPED = ('gan_mrcnn', 'custom_ops', 'benchmarks', 'train.py', 'evaluate.py')
_ADDONS_FILE = 'gan_mrcnn/data/augment.py'


def _environment(python):
    """What a marker asks of a Python on Linux."""
    return {
        'python_version': python,
        'python_full_version': f'{python}.1',
        'sys_platform': 'linux',
        'platform_machine': 'x86_64',
        'platform_python_implementation': 'CPython',
        'implementation_name': 'cpython',
    }


@functools.cache
def _metadata(tensorflow=''):
    """Lines of the built package's requirements, its extras' too, as pip would read them."""
    program = (
        'import runpy, setuptools\n'
        'made = {}\n'
        'setuptools.setup = made.update\n'
        'runpy.run_path("setup.py")\n'
        'print(*made["install_requires"], *sum(made["extras_require"].values(), []), sep="\\n")\n'
    )
    environment = {**os.environ, 'GAN_MRCNN_TF': tensorflow}
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=_ROOT, env=environment, capture_output=True, text=True
    )
    return done.stdout.splitlines() or done.stderr.strip()


def _requirements(python, tensorflow=''):
    """Every requirement of setup.py, and of its extras, that holds for a Python."""
    requirements = [Requirement(line) for line in _metadata(tensorflow)]
    python = _environment(python)
    return [r for r in requirements if r.marker is None or r.marker.evaluate(python)]


def _lock_lines(tensorflow):
    text = (_ROOT / f'requirements-tf{tensorflow}.lock').read_text(encoding='utf-8')
    return [line for line in text.splitlines() if line and not line.startswith('#')]


def _locked(tensorflow, python):
    """Canonical name -> version, for every line of the lock that is for that Python."""
    pins = {}
    for line in _lock_lines(tensorflow):
        pin, _, marker = line.partition(' ; ')
        if not marker or Marker(marker).evaluate(_environment(python)):
            name, version = pin.split('==')
            assert canonicalize_name(name) not in pins, line
            pins[canonicalize_name(name)] = version
    return pins


def _sources(*places):
    for place in places:
        path = _ROOT / place
        yield from [path] if path.is_file() else sorted(path.rglob('*.py'))


def _imported(tree):
    """Dotted names that a syntax tree imports, at any depth, as absolute imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _importers(packages, *places):
    """'file: name' for every import of one of the dotted `packages` under `places`."""
    return [
        f'{path.relative_to(_ROOT).as_posix()}: {name}'
        for path in _sources(*places)
        for name in _imported(ast.parse(path.read_text(encoding='utf-8')))
        if any(f'{name}.'.startswith(f'{package}.') for package in packages)
    ]


def test_imported_sees_every_form_of_import():
    source = (
        'import keras.src.layers as l\n'
        'def f():\n'
        '    from tensorflow.python import ops\n'
        '    from tensorflow import python\n'
        'from . import keras\n'
    )
    assert sorted(_imported(ast.parse(source))) == [
        'keras.src.layers',
        'tensorflow.python',
        'tensorflow.python.ops',
    ]


@pytest.mark.parametrize('tensorflow', ['2.15', '2.20'])
def test_lock_holds_plain_pins_only(tensorflow):
    """No local file, address or editable line: it must install anywhere."""
    pin = r"[\w.-]+==[\w.]+( ; [\w.'<>=!* ()]+)?"
    assert [line for line in _lock_lines(tensorflow) if not re.fullmatch(pin, line)] == []


@pytest.mark.parametrize(('tensorflow', 'python'), _LOCKS)
def test_lock_satisfies_setup(tensorflow, python):
    locked = _locked(tensorflow, python)
    broken = [
        f'{requirement}: locked is {locked.get(canonicalize_name(requirement.name))}'
        for requirement in _requirements(python, tensorflow)
        if canonicalize_name(requirement.name) not in locked
        or locked[canonicalize_name(requirement.name)] not in requirement.specifier
    ]
    assert broken == []


@pytest.mark.parametrize(('tensorflow', 'python'), _LOCKS)
def test_only_the_headless_opencv(tensorflow, python):
    """Two OpenCV wheels overwrite each other's files."""
    locked = _locked(tensorflow, python)
    assert [name for name in locked if name.startswith('opencv')] == ['opencv-python-headless']
    required = [r.name for r in _requirements(python, tensorflow)]
    assert [name for name in required if 'opencv' in name] == ['opencv-python-headless']


@pytest.mark.parametrize(
    ('python', 'asked', 'tensorflow'),
    [
        ('3.9', '', '2.15'),
        ('3.11', '', '2.15'),
        ('3.12', '', '2.20'),
        ('3.13', '', '2.20'),
        ('3.11', '2.20', '2.20'),
    ],
)
def test_python_or_the_variable_chooses_the_set(python, asked, tensorflow):
    """Exactly one TensorFlow and what goes with it, and the addons with 2.15 alone."""
    chosen = {r.name: r.specifier for r in _requirements(python, asked)}
    names = ['tensorflow', 'tf-models-official', 'numpy']
    assert all([r.name for r in _requirements(python, asked)].count(name) == 1 for name in names)
    assert f'{tensorflow}.1' in chosen['tensorflow']
    assert f'{tensorflow}.0' in chosen['tf-models-official']
    assert ('tensorflow-addons' in chosen) == (tensorflow == '2.15')
    assert ('tf_keras' in chosen) == (tensorflow == '2.20')


def test_an_unknown_set_is_named():
    assert _metadata('2.19') == 'GAN_MRCNN_TF is 2.19; set it to 2.15 or 2.20, or leave it out'


def test_every_package_folder_is_found_by_setup():
    """find_packages passes over a folder without __init__.py, and an install would lack it."""
    folders = {path.parent for path in _sources('gan_mrcnn', 'custom_ops')}
    missing = [
        str(folder.relative_to(_ROOT))
        for inner in folders
        for folder in (inner, *inner.parents)
        if folder not in (_ROOT, *_ROOT.parents) and not (folder / '__init__.py').is_file()
    ]
    assert missing == []


def test_only_one_file_imports_the_addons():
    """tensorflow-addons ended with TensorFlow 2.15: one file is to be replaced."""
    importers = _importers(['tensorflow_addons'], *_SHIPPED, 'tests')
    assert [line for line in importers if not line.startswith(f'{_ADDONS_FILE}: ')] == []


def test_no_private_tensorflow_or_keras():
    """Keras is reached as tf.keras only, so that a newer TensorFlow is a change of pins."""
    assert _importers(['tensorflow.python', 'keras', 'tf_keras'], *_SHIPPED) == []
