"""The frame of the project: requirements and lock agree, and imports stay inside their fences."""

import ast
import pathlib
import re

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_SHIPPED = ('gan_mrcnn', 'custom_ops', 'benchmarks', 'train.py', 'evaluate.py')
_ADDONS_FILE = 'gan_mrcnn/datasets/augment.py'


def _setup_literal(name):
    """Value of a literal at the top level of setup.py, read without running setup()."""
    for node in ast.parse((_ROOT / 'setup.py').read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f'setup.py has no {name}')


def _requirements():
    """Every requirement of setup.py that holds for the Python of the lock."""
    lines = list(_setup_literal('_INSTALL_REQUIRES'))
    for extra in _setup_literal('_EXTRAS_REQUIRE').values():
        lines += extra
    requirements = [Requirement(line) for line in lines]
    python = {'python_version': '3.11', 'python_full_version': '3.11.0'}
    return [r for r in requirements if r.marker is None or r.marker.evaluate(python)]


def _lock_lines():
    text = (_ROOT / 'requirements.lock').read_text(encoding='utf-8')
    return [line for line in text.splitlines() if line and not line.startswith('#')]


def _locked():
    """Canonical name -> version, for every line of the lock."""
    pins = (line.split('==') for line in _lock_lines())
    return {canonicalize_name(name): version for name, version in pins}


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


def test_lock_holds_plain_pins_only():
    """No local file, address or editable line: it must install anywhere."""
    odd = [line for line in _lock_lines() if not re.fullmatch(r'[\w.-]+==[\w.]+', line)]
    assert odd == []
    assert len(_locked()) == len(_lock_lines())


def test_lock_satisfies_setup():
    locked = _locked()
    broken = [
        f'{requirement}: locked is {locked.get(canonicalize_name(requirement.name))}'
        for requirement in _requirements()
        if canonicalize_name(requirement.name) not in locked
        or locked[canonicalize_name(requirement.name)] not in requirement.specifier
    ]
    assert broken == []


def test_only_the_headless_opencv():
    """Two OpenCV wheels overwrite each other's files."""
    assert [name for name in _locked() if name.startswith('opencv')] == ['opencv-python-headless']
    assert [r.name for r in _requirements() if 'opencv' in r.name] == ['opencv-python-headless']


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


def test_addons_are_fenced_into_one_file():
    """tensorflow-addons ended with TensorFlow 2.15: one file to replace, not a hunt."""
    importers = _importers(['tensorflow_addons'], *_SHIPPED, 'tests')
    assert [line for line in importers if not line.startswith(f'{_ADDONS_FILE}: ')] == []


def test_no_private_tensorflow_or_keras():
    """Keras is reached as tf.keras only, so that a newer TensorFlow is a change of pins."""
    assert _importers(['tensorflow.python', 'keras', 'tf_keras'], *_SHIPPED) == []
