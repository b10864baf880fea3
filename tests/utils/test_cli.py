"""What someone at the command line sees: --help at once, and one line for each mistake."""

import os
import pathlib
import subprocess
import sys

import pytest

from gan_mrcnn.data import readers
from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def run(*args):
    return subprocess.run(
        [sys.executable, *args], cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )


def failure_of(*args):
    """The only line on standard error of a command that must end with status 2."""
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert 'Traceback' not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_unknown_data_set_ends_with_one_line():
    line = failure_of('train.py', '--dataset', 'nosuch')
    assert line.startswith('train.py: ')
    assert 'nosuch' in line and 'gland' in line


def test_wrong_data_dir_ends_with_one_line():
    line = failure_of('train.py', '--dataset', 'gland', '--data_dir', '/nowhere')
    assert line.startswith('train.py: ')
    assert '/nowhere' in line and 'Grade.csv' in line


def test_evaluate_without_a_run_ends_with_one_line(tmp_path):
    line = failure_of('evaluate.py', '--dataset', 'gland')
    assert line.startswith('evaluate.py: ') and '--model_dir' in line


def test_damaged_annotations_end_with_one_line(tmp_path):
    (tmp_path / 'mine.json').write_text('{"images": [')
    line = failure_of('train.py', '--dataset', 'coco_format', '--data_dir', str(tmp_path))
    assert f'{tmp_path / "mine.json"} cannot be read as JSON' in line


@pytest.mark.parametrize('command', ['train.py', 'evaluate.py'])
def test_help_needs_no_tensorflow(command):
    code = (
        'import runpy, sys\n'
        f'sys.argv = [{command!r}, "--help"]\n'
        'try:\n'
        f'    runpy.run_path({command!r}, run_name="__main__")\n'
        'except SystemExit as end:\n'
        '    assert not end.code\n'
        'assert "tensorflow" not in sys.modules and "official" not in sys.modules\n'
    )
    done = run('-c', code)
    assert done.returncode == 0, done.stderr
    for name in ('--dataset', '--data_dir', '--model_dir', '--config_file', '--params_override'):
        assert name in done.stdout


def test_flags_import_nothing_heavy():
    done = run(
        '-c', 'import sys; import gan_mrcnn.utils.cli; assert "tensorflow" not in sys.modules'
    )
    assert done.returncode == 0, done.stderr


def test_help_names_all_data_sets():
    assert tuple(readers.DATASETS) == cli.DATASETS


def test_split_is_a_share_in_training_and_a_name_in_evaluation():
    done = run('train.py', '--dataset', 'phone', '--split', 'val')
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert '--split' in last and "'val'" in last
    line = failure_of('train.py', '--dataset', 'phone', '--data_dir', '.', '--split', '90')
    assert '--split 90 ' in line and '0.9' in line
    for option in ('--split_seed', '--group_by'):
        assert option not in run('evaluate.py', '--help').stdout


def test_mistyped_gan_mode_names_the_valid_ones():
    done = run('train.py', '--dataset', 'gland', '--gan', 'nosuch')
    assert done.returncode == 2
    assert 'Traceback' not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert 'nosuch' in last
    for mode in cli.GAN_MODES:
        assert mode in last


@pytest.mark.parametrize(
    'error, status, text',
    [(UserError('no such thing'), 2, 'no such thing'), (KeyboardInterrupt(), 130, 'goes on')],
)
def test_ends_of_a_run(error, status, text, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run_main(main, 'train.py', stopped='stopped; the same command goes on')
    assert end.value.code == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and text in lines[0]


def test_bugs_are_not_hidden():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run_main(main, 'train.py')


def test_a_name_with_bytes_that_are_no_text_is_printed_and_logged_with_escapes(tmp_path):
    code = (
        'import os\n'
        'from gan_mrcnn.utils import cli\n'
        'from gan_mrcnn.utils.errors import UserError\n'
        'def main():\n'
        f'    cli.log_to({str(tmp_path / "log")!r})\n'
        '    print(os.fsdecode(b"a\\xfc.png"))\n'
        '    raise UserError(os.fsdecode(b"b\\xfc.png"))\n'
        'cli.run_main(main, "program")\n'
    )
    done = run('-c', code)
    assert done.returncode == 2 and done.stdout == 'a\\udcfc.png\n'
    assert done.stderr == 'program: b\\udcfc.png\n'
    assert (tmp_path / 'log').read_text() == 'a\\udcfc.png\nprogram: b\\udcfc.png\n'


@pytest.mark.parametrize('encoding', ['ascii', 'iso-8859-1', 'cp1252'])
def test_what_a_terminal_has_no_character_for_is_escaped(encoding):
    code = (
        'import os, sys\n'
        'from gan_mrcnn.utils import cli\n'
        'from gan_mrcnn.utils.errors import UserError\n'
        'def main():\n'
        '    print("class \\u817a", os.fsdecode(b"latin\\xfc"))\n'
        '    raise UserError("no \\u817a\\nhere\\x1b[1m")\n'
        'cli.run_main(main, "x")\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ, 'PYTHONIOENCODING': encoding},
    )
    assert done.returncode == 2
    assert done.stdout == b'class \\u817a latin\\udcfc\n'
    # One line, and nothing in it that a terminal would obey.
    assert done.stderr == b'x: no \\u817a\\nhere\\x1b[1m\n'


@pytest.mark.parametrize(
    'output, status, text',
    [
        ('> /dev/full', 2, 'standard output cannot be written (No space left on device)'),
        ('| true', 2, 'standard output is closed'),
        ('>&-', 0, ''),
        ('>&- 2>&-', 0, ''),
    ],
)
def test_standard_output_that_takes_nothing(output, status, text):
    code = (
        'import time\n'
        'from gan_mrcnn.utils import cli\n'
        'cli.run_main(lambda: [print("x" * 9999, flush=True) or time.sleep(.2) '
        'for _ in range(3)], "x")\n'
    )
    done = subprocess.run(
        ['bash', '-c', f"{sys.executable} -c '{code}' {output}; exit ${{PIPESTATUS[0]}}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.strip()) == (status, text and f'x: {text}')
