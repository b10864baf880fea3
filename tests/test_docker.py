"""Image and services, as far as they can be checked without an engine: what they name exists."""

import argparse
import fnmatch
import importlib
import pathlib
import re

import pytest
import yaml

from gan_mrcnn.serving import export

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_COMPOSE = _ROOT / 'docker/compose.yaml'
_DOCKERFILE = (_ROOT / 'docker/Dockerfile').read_text(encoding='utf-8')
_SERVICES = yaml.safe_load(_COMPOSE.read_text(encoding='utf-8'))['services']
_OURS = [name for name, service in _SERVICES.items() if 'build' in service]


def ignored(path):
    """Whether .dockerignore leaves out a path of the repository; `**/` and whole names only."""
    lines = (_ROOT / '.dockerignore').read_text(encoding='utf-8').splitlines()
    patterns = [line for line in lines if line and not line.startswith('#')]
    parts = pathlib.PurePosixPath(path).parts
    return any(
        any(fnmatch.fnmatchcase(part, pattern[3:]) for part in parts)
        if pattern.startswith('**/')
        else fnmatch.fnmatchcase(parts[0], pattern)
        for pattern in patterns
    )


def mounts(service):
    """Path in the container -> whether it is only read."""
    # A variable's default has a colon of its own.
    volumes = [re.sub(r'\$\{[^}]*\}', 'variable', one) for one in service['volumes']]
    return {one.split(':')[1]: one.endswith(':ro') for one in volumes}


def instructions(word):
    joined = _DOCKERFILE.replace('\\\n', ' ')
    return [line.split(maxsplit=1)[1] for line in joined.splitlines() if line.startswith(word)]


def test_the_compose_file_finds_the_dockerfile_and_the_repository():
    assert _OURS == ['train', 'tensorboard', 'export']
    for name in _OURS:
        build = _SERVICES[name]['build']
        context = (_COMPOSE.parent / build['context']).resolve()
        assert context == _ROOT and (context / build['dockerfile']).is_file()


def test_the_image_has_the_code_and_the_locks_and_no_data():
    for pattern in ('requirements-*.lock', 'configs/*.yaml', 'gan_mrcnn/data/readers/*.py'):
        files = [path.relative_to(_ROOT).as_posix() for path in _ROOT.glob(pattern)]
        assert files and not any(map(ignored, files))
    for path in ('setup.py', 'pyproject.toml', 'train.py', 'custom_ops/prroi_pool/build.py'):
        assert (_ROOT / path).is_file() and not ignored(path)
    for path in (
        'data/gland/train_1.bmp',
        'runs/a/ckpt-1.index',
        '.git/config',
        '.venv/bin/python',
    ):
        assert ignored(path)
    assert ignored('custom_ops/prroi_pool/prroi_pool-tf2.15.so')


def test_the_image_is_made_by_the_locks_of_its_python():
    arguments = dict(line.split('=') for line in instructions('ARG '))
    name = arguments['TENSORFLOW']
    for lock in re.findall(r'-r "(.+?)"', _DOCKERFILE):
        assert (_ROOT / lock.replace('${TENSORFLOW}', name)).is_file()
    tensorflow = '2.15' if float(arguments['PYTHON'].partition('.')[2]) < 12 else '2.20'
    assert name == tensorflow
    assert arguments['CUDA'] in ('yes', 'no')


def test_no_program_runs_as_root():
    assert instructions('USER ')[-1] == '1000'
    for service in _SERVICES.values():
        assert service['user'] == '${RUN_AS:-1000:1000}'


def test_other_images_are_pinned_and_serving_is_our_tensorflow():
    version = _SERVICES['serving']['image'].removeprefix('tensorflow/serving:')
    lock = (_ROOT / 'requirements-tf2.20.lock').read_text(encoding='utf-8')
    assert f'\ntensorflow=={version}\n' in lock
    (base,) = {line.split()[0] for line in instructions('FROM ')}
    assert re.fullmatch(r'python:\$\{PYTHON\}-slim-\w+', base)


@pytest.mark.parametrize('name', ['train', 'export'])
def test_commands_are_ours_and_their_folders_are_mounted(name):
    word, *flags = _SERVICES[name]['command']
    assert instructions('ENTRYPOINT ') == ['["gan-mrcnn"]']
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f'gan_mrcnn.commands.{word}').add_flags(parser)
    options = vars(parser.parse_args(flags))
    folders = mounts(_SERVICES[name])
    for flag, is_read_only in (('data_dir', True), ('model_dir', False), ('export_dir', False)):
        if flag in options:
            assert folders['/' + options[flag].split('/')[1]] == is_read_only
    # Where the image lets any user write.
    (writable,) = re.findall(r'install -d -m 1777 (.+)', _DOCKERFILE)
    assert {path for path, is_read_only in folders.items() if not is_read_only} < {
        *writable.split()
    }
    assert 'GAN_MRCNN_CACHE=/cache' in _DOCKERFILE and '/cache' in folders


def test_serving_finds_what_was_exported():
    command = _SERVICES['export']['command']
    environment = _SERVICES['serving']['environment']
    written = command[command.index('--export_dir') + 1]
    assert environment['MODEL_BASE_PATH'] == written
    assert environment['MODEL_NAME'] == export.MODEL_NAME
    assert mounts(_SERVICES['serving'])['/runs'] and written.startswith('/runs/')


def test_ports_are_this_machines_alone_and_those_of_the_documentation():
    ports = {port for service in _SERVICES.values() for port in service.get('ports', ())}
    assert ports == {f'127.0.0.1:{port}:{port}' for port in (6006, 8500, 8501)}
    tensorboard = _SERVICES['tensorboard']['command']
    assert tensorboard[tensorboard.index('--port') + 1] == '6006'
    text = (_ROOT / 'docs/docker.md').read_text(encoding='utf-8')
    assert 'localhost:6006' in text and 'localhost:8501/v1/models/model' in text


def test_documented_services_and_variables_exist():
    text = (_ROOT / 'docs/docker.md').read_text(encoding='utf-8')
    asked = re.findall(r'compose\.yaml (?:up|run)((?: -[-\w]+)*)((?: \w+)+)', text)
    assert {name for _, names in asked for name in names.split()} == set(_SERVICES)
    variables = set(re.findall(r'\$\{(\w+)', _COMPOSE.read_text(encoding='utf-8')))
    assert variables == {'DATA_DIR', 'RUNS_DIR', 'RUN_AS'}
    assert all(f'| `{name}` |' in text for name in variables)
