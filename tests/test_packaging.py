"""Packaging: requirements and locks agree, and imports keep to their limits."""

import ast
import functools
import importlib.metadata
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
def _metadata(tensorflow='', extras=('serving', 'test')):
    """Lines of the built package's requirements, these extras' too, as pip would read them."""
    program = (
        'import runpy, setuptools\n'
        'made = {}\n'
        'setuptools.setup = made.update\n'
        'runpy.run_path("setup.py")\n'
        'print(*made["install_requires"], sep="\\n")\n'
        f'for extra in {extras}: print(*made["extras_require"][extra], sep="\\n")\n'
    )
    environment = {**os.environ, 'GAN_MRCNN_TF': tensorflow}
    done = subprocess.run(
        [sys.executable, '-c', program], cwd=_ROOT, env=environment, capture_output=True, text=True
    )
    return done.stdout.splitlines() or done.stderr.strip()


def _requirements(python, tensorflow='', extras=('serving', 'test')):
    """Every requirement of setup.py, and of these extras, that holds for a Python."""
    requirements = [Requirement(line) for line in _metadata(tensorflow, extras)]
    python = _environment(python)
    return [r for r in requirements if r.marker is None or r.marker.evaluate(python)]


def _lock_lines(name):
    text = (_ROOT / f'requirements-{name.lstrip("-")}.lock').read_text(encoding='utf-8')
    return [line for line in text.splitlines() if line and not line.startswith('#')]


def _locked(tensorflow, python, *others):
    """Canonical name -> version, for every line of the lock that is for that Python.

    `others` are locks beside it: 'cuda', 'extras'. No package is in two of them.
    """
    pins = {}
    for line in (line for kind in ('', *others) for line in _lock_lines(f'{kind}-tf{tensorflow}')):
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


@pytest.mark.parametrize(
    'name', [f'{kind}tf{tf}' for kind in ('', 'cuda-', 'extras-') for tf in ('2.15', '2.20')]
)
def test_lock_holds_plain_pins_only(name):
    """No local file, address or editable line: it must install anywhere."""
    pin = r"[\w.-]+==[\w.]+( ; [\w.'<>=!* ()]+)?"
    assert [line for line in _lock_lines(name) if not re.fullmatch(pin, line)] == []


@pytest.mark.parametrize(('tensorflow', 'python'), _LOCKS)
def test_lock_satisfies_setup(tensorflow, python):
    required = _requirements(python, tensorflow)
    assert _not_met(required, _locked(tensorflow, python)) == []


def _not_met(requirements, locked):
    return [
        f'{requirement}: locked is {locked.get(canonicalize_name(requirement.name))}'
        for requirement in requirements
        if canonicalize_name(requirement.name) not in locked
        or locked[canonicalize_name(requirement.name)] not in requirement.specifier
    ]


@pytest.mark.parametrize(('tensorflow', 'python'), _LOCKS)
def test_cuda_lock_satisfies_setup(tensorflow, python):
    required = _requirements(python, tensorflow, ('gpu',))
    assert 'and-cuda' in {extra for requirement in required for extra in requirement.extras}
    locked = _locked(tensorflow, python, 'cuda')
    assert _not_met(required, locked) == []
    # What it brings can be compiled with: a complete compiler of one version.
    parts = ('nvcc', 'runtime', 'crt', 'cccl')
    versions = [locked[f'nvidia-cuda-{part}'] for part in parts] + [locked['nvidia-nvvm']]
    assert {version.rpartition('.')[0] for version in versions} == {'13.0'}


@pytest.mark.parametrize(
    ('tensorflow', 'python'), [('2.15', '3.11'), ('2.20', '3.12'), ('2.20', '3.13')]
)
def test_extras_lock_satisfies_setup(tensorflow, python):
    extras = ('beam', 'demo', 'slides', 'onnx', 'docs', 'browser')
    required = _requirements(python, tensorflow, extras)
    assert {'gradio', 'openslide-python', 'tf2onnx', 'mkdocs'} <= {r.name for r in required}
    assert _not_met(required, _locked(tensorflow, python, 'extras')) == []


def test_cuda_lock_holds_what_this_tensorflow_asks_for():
    """That of the other set cannot be asked here."""
    tensorflow = importlib.metadata.version('tensorflow').rpartition('.')[0]
    wanted = [Requirement(line) for line in importlib.metadata.requires('tensorflow')]
    of_cuda = [r for r in wanted if 'and-cuda' in str(r.marker)]
    assert len(of_cuda) > 5
    python = f'{sys.version_info.major}.{sys.version_info.minor}'
    assert _not_met(of_cuda, _locked(tensorflow, python, 'cuda')) == []


@pytest.mark.parametrize(
    ('listed', 'asked', 'with_cuda'),
    [
        ('GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d8c)', None, True),
        ('GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-5d8c)', 'no', False),
        ('No devices were found', None, False),
        (None, None, False),
        (None, 'yes', True),
    ],
)
def test_make_installs_cuda_where_a_gpu_answers(tmp_path, listed, asked, with_cuda):
    commands = _make(tmp_path, listed, asked)
    (line,) = re.findall(r'-r requirements-tf\S+ (.*)&& .* -e \.', commands.replace('\\\n', ' '))
    assert line.split() == (['-r', 'requirements-cuda-tf$GAN_MRCNN_TF.lock'] if with_cuda else [])
    assert ('6 GB with CUDA' if with_cuda else '3 GB.') in commands


def test_make_names_an_answer_that_is_neither_yes_nor_no(tmp_path):
    assert 'GAN_MRCNN_CUDA is maybe; set it to yes or no' in _make(tmp_path, None, 'maybe')


def _make(folder, listed, asked):
    """What `make test` would run in a new environment, with an nvidia-smi that prints `listed`."""
    program = folder / 'nvidia-smi'
    # Before whatever this machine has.
    program.write_text(f'#!/bin/sh\necho "{listed}"\n' if listed else '#!/bin/sh\nexit 127\n')
    program.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}'}
    environment.pop('GAN_MRCNN_CUDA', None)
    if asked:
        environment['GAN_MRCNN_CUDA'] = asked
    done = subprocess.run(
        ['make', '-n', 'test', f'VENV={folder}/new'],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


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


def test_an_installed_package_has_every_file_of_settings(tmp_path):
    """What `pip install .` and a wheel hold, away from the repository."""
    build = [sys.executable, 'setup.py', '-q', 'build_py', '--build-lib', str(tmp_path / 'lib')]
    subprocess.run(build, cwd=_ROOT, check=True, capture_output=True)
    program = 'from gan_mrcnn import settings; print(settings.CONFIGS_DIR)'
    done = subprocess.run(
        [sys.executable, '-c', program],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(tmp_path / 'lib')},
        check=True,
        capture_output=True,
        text=True,
    )
    folder = pathlib.Path(done.stdout.strip())
    assert folder.is_relative_to(tmp_path)
    ours = sorted((_ROOT / 'configs').glob('*.yaml'))
    assert len(ours) > 5
    assert [path.name for path in ours] == sorted(path.name for path in folder.iterdir())
    for path in ours:
        assert (folder / path.name).read_bytes() == path.read_bytes()
