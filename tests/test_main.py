"""`gan-mrcnn`: every command helps at once, and mistakes are answered in one line."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from gan_mrcnn import __main__ as program
from gan_mrcnn.commands import ablate as ablate_command
from gan_mrcnn.evaluation import ablate

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# What a command must not have loaded by the time it helps; each of them takes a tenth of a second
# or much more.
HEAVY = {'tensorflow', 'official', 'numpy', 'cv2', 'matplotlib', 'pycocotools', 'jinja2', 'yaml'}


def run(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'gan_mrcnn', *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_there_is_a_module_for_each_command_and_a_command_for_each_module():
    modules = {path.stem for path in (REPOSITORY / 'gan_mrcnn/commands').glob('[!_]*.py')}
    assert modules == set(program.COMMANDS)
    for name in program.COMMANDS:
        module = importlib.import_module(f'gan_mrcnn.commands.{name}')
        assert f'gan-mrcnn {name} ' in module.__doc__.splitlines()[0]


@pytest.mark.parametrize('name', program.COMMANDS)
def test_help_comes_at_once(name):
    """The processor time of the fastest of three: the machine may have other work."""
    code = (
        'import sys, time\n'
        'from gan_mrcnn.__main__ import main\n'
        'try:\n'
        f'    main([{name!r}, "--help"])\n'
        'except SystemExit as end:\n'
        '    assert not end.code\n'
        'print(time.process_time(), *sys.modules)\n'
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        own_time, *modules = done.stdout.splitlines()[-1].split()
        seconds.append(float(own_time))
    assert f'usage: gan-mrcnn {name} ' in done.stdout
    assert not HEAVY & set(modules)
    assert min(seconds) < 0.3


def test_a_word_that_is_no_command_is_answered_with_the_nearest():
    done = run('evalute')
    assert done.returncode == 2
    assert done.stderr == 'gan-mrcnn: evalute is no command; did you mean evaluate?\n'
    assert 'there are train, evaluate, predict' in run('xyz').stderr


def test_help_lists_every_command():
    for arguments in (('--help',), ('help',), ()):
        done = run(*arguments)
        assert done.returncode == (0 if arguments else 2)
        assert all(f'  {name} ' in done.stdout for name in program.COMMANDS)
    assert run('--version').stdout.startswith('gan-mrcnn 0.')


def test_messages_name_the_command():
    done = run('evaluate', '--dataset', 'gland')
    assert done.returncode == 2 and done.stderr.startswith('gan-mrcnn evaluate: --model_dir')
    done = run('export', '--nosuch')
    assert done.returncode == 2 and 'usage: gan-mrcnn export' in done.stderr


def test_flags_are_not_abbreviated():
    """An abbreviation that works today means something else when a flag is added."""
    done = run('train', '--data', 'gland')
    assert done.returncode == 2 and '--dataset' in done.stderr


def test_tables_that_can_be_ablated():
    flags = ['--table', 'x', '--dataset', 'gland', '--model_dir', 'runs']
    for table in ablate.TABLES:
        flags[1] = table
        assert program.parse('ablate', flags, 'ablate')[1].table == table
    assert tuple(ablate.TABLES) == ablate_command.TABLES
