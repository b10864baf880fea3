"""The rows of the paper's ablations, and how a table is resumed."""

import json
import subprocess

import pytest
from official.core import exp_factory

from gan_mrcnn import __main__ as program
from gan_mrcnn import configs, settings
from gan_mrcnn.commands import ablate as commands_ablate
from gan_mrcnn.evaluation import ablate
from gan_mrcnn.utils.errors import UserError


def options(tmp_path, *more, table='6'):
    required = ['--table', table, '--dataset', 'gland', '--model_dir', str(tmp_path)]
    _, options = program.parse('ablate', [*required, *more], 'ablate')
    return options


def value(command, flag):
    return command[command.index(flag) + 1]


def test_every_row_is_a_valid_setting_of_its_own():
    for table, rows in ablate.TABLES.items():
        found = []
        for row in rows:
            config = exp_factory.get_exp_config(configs.EXPERIMENT)
            if row.override:
                values = settings._parse_overrides(row.override)
                settings.override(config, values, row.name)
            config.task.gan.mode = row.gan
            found.append(json.dumps(config.task.as_dict(), sort_keys=True, default=str))
        assert len(set(found)) == len(rows), table


def test_rows_of_the_papers_tables():
    layers = []
    for row in ablate.TABLES['6']:
        config = exp_factory.get_exp_config(configs.EXPERIMENT)
        if row.override:
            settings.override(config, settings._parse_overrides(row.override), row.name)
        layers.append(config.task.gan.num_layers)
    assert layers == [3, 4, 5]
    modes = [row.gan for row in ablate.TABLES['5']]
    assert modes == ['baseline', 'adversarial_only', 'combined']


def test_what_is_run(tmp_path):
    given = ['--seeds', '3', '4', '--config_file', 'small.yaml', '--params_override', 'a=1']
    chosen = options(tmp_path, *given, '--data_dir', 'here')
    assert chosen.seeds == [3, 4]
    folder, (train, evaluate) = ablate.commands(chosen, ablate.TABLES['6'][1], 4)
    assert folder == str(tmp_path / 'layers4-4')
    assert (train[0], evaluate[0]) == ('train', 'evaluate')
    for command in (train, evaluate):
        assert value(command, '--model_dir') == folder
        assert value(command, '--data_dir') == 'here'
    assert value(train, '--seed') == '4' and value(train, '--config_file') == 'small.yaml'
    # The row's own override comes last, and wins.
    overrides = [train[i + 1] for i, word in enumerate(train) if word == '--params_override']
    assert overrides == ['a=1', 'task.gan.num_layers=4']


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    ran = []

    def run(command):
        ran.append(command[3])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(ablate.subprocess, 'run', run)
    chosen = options(tmp_path)
    folder, steps = ablate.commands(chosen, ablate.TABLES['6'][0], 0)
    assert ablate.run_row(folder, 'test', steps)
    assert ran == ['train', 'evaluate']
    # Interrupted before it was evaluated: both go on.
    assert ablate.run_row(folder, 'test', steps) and len(ran) == 4
    results = tmp_path / 'layers3-0' / 'eval' / 'test' / 'results.json'
    results.parent.mkdir(parents=True)
    results.write_text('{}')
    assert not ablate.run_row(folder, 'test', steps) and len(ran) == 4
    _, others = ablate.commands(options(tmp_path, '--config_file', 'x'), ablate.TABLES['6'][0], 0)
    with pytest.raises(UserError, match='other flags'):
        ablate.run_row(folder, 'test', others)


def test_a_failed_run_ends_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(
        ablate.subprocess, 'run', lambda command: subprocess.CompletedProcess(command, 2)
    )
    chosen = options(tmp_path)
    folder, steps = ablate.commands(chosen, ablate.TABLES['6'][0], 0)
    with pytest.raises(UserError, match='train failed with status 2'):
        ablate.run_row(folder, 'test', steps)


def test_flags_that_rows_set_are_refused(tmp_path):
    with pytest.raises(UserError, match='--gan'):
        commands_ablate.main(options(tmp_path, '--gan', 'baseline'))


def test_the_papers_figures():
    assert 'layers3: mask AP 0.5624, box AP 0.5470' in ablate.format_paper('6')
    assert ablate.format_paper('ours') == ''
