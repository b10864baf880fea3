"""The arms of ablations, what is run for each, and how it is resumed and reported."""

import json

import pytest
import yaml
from official.core import exp_factory

from gan_mrcnn import __main__ as program
from gan_mrcnn import configs, settings
from gan_mrcnn.commands import ablate as commands_ablate
from gan_mrcnn.evaluation import ablate
from gan_mrcnn.evaluation.report import ablation
from gan_mrcnn.utils.errors import UserError


def options(tmp_path, *more, table='6'):
    chosen = [] if '--arms' in more else ['--table', table]
    required = [*chosen, '--dataset', 'gland', '--model_dir', str(tmp_path / 'runs')]
    _, options = program.parse('ablate', [*required, *more], 'ablate')
    return options


def value(command, flag):
    """What holds of a flag that may be given more than once."""
    return command[len(command) - command[::-1].index(flag)]


def configured(arm):
    config = exp_factory.get_exp_config(configs.EXPERIMENT)
    if arm.override:
        settings.override(config, settings._parse_overrides(arm.override), arm.name)
    config.task.gan.mode = arm.gan
    return config


def test_every_arm_is_a_valid_setting_of_its_own():
    for table, arms in ablate.TABLES.items():
        found = [json.dumps(configured(arm).task.as_dict(), sort_keys=True) for arm in arms]
        assert len(set(found)) == len(arms), table


def test_arms_of_the_papers_tables():
    assert [configured(arm).task.gan.num_layers for arm in ablate.TABLES['6']] == [3, 4, 5]
    modes = [arm.gan for arm in ablate.TABLES['5']]
    assert modes == ['baseline', 'adversarial_only', 'combined']


def test_arms_of_one_name_are_the_same_runs():
    arms = [arm for table in ablate.TABLES.values() for arm in table]
    assert len({arm.name for arm in arms}) == len(set(arms))


def test_controls_differ_from_their_arm_by_one_setting():
    baseline, heavier, combined, *others = ablate.TABLES['controls']
    assert heavier._replace(name='baseline', override='') == baseline
    assert configured(heavier).task.losses.mask_weight == 1.5
    assert [arm.gan for arm in (combined, *others)] == ['combined'] * 3
    assert [arm.override for arm in others] == [
        'task.gan.control=frozen',
        'task.gan.control=shuffled',
    ]


# Arms from a file.


def write_arms(tmp_path, text):
    path = tmp_path / 'weights.yaml'
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_tables_can_be_written_as_files(tmp_path):
    for arms in ablate.TABLES.values():
        content = {
            arm.name: {key: x for key, x in arm._asdict().items() if key != 'name' and x}
            for arm in arms
        }
        path = write_arms(tmp_path, yaml.safe_dump(content, sort_keys=False))
        assert ablate.read_arms(path) == arms


def test_an_arm_without_settings_is_the_combined_one(tmp_path):
    path = write_arms(tmp_path, 'first:\nsecond: {config_file: ~/x.yaml}\n')
    first, second = ablate.read_arms(path)
    assert first == ablate.Arm('first', 'combined', '', '')
    assert second.config_file.endswith('/x.yaml') and '~' not in second.config_file


@pytest.mark.parametrize(
    'text, named',
    [
        ('', 'has no arms'),
        ('- baseline', 'has no arms'),
        ('a: {gan: bse}', 'gan of a is bse; give combined, baseline, adversarial_only'),
        ('a: {overide: x}', "a is {'overide': 'x'}; valid there: gan, override, config_file"),
        ('a: baseline', "a is 'baseline'; valid there"),
        ('a: {override: {task: {seed: 1}}}', 'override of a is'),
        ('a: {config_file: ""}', None),
        ('a/b: {gan: baseline}', "the arm 'a/b' wants a name"),
        ('1: {gan: baseline}', 'the arm 1 wants a name'),
        ('a: {', 'is not YAML'),
    ],
)
def test_files_that_are_no_arms_are_named(text, named, tmp_path):
    path = write_arms(tmp_path, text)
    if named is None:
        assert ablate.read_arms(path) == (ablate.Arm('a'),)
        return
    with pytest.raises(UserError) as error:
        ablate.read_arms(path)
    assert named in str(error.value) and path in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match='--arms .*none.yaml cannot be read'):
        ablate.read_arms(str(tmp_path / 'none.yaml'))


# Flags.


@pytest.mark.parametrize(
    'words, seeds',
    [(['3', '4'], [3, 4]), (['0-3'], [0, 1, 2, 3]), (['7', '0-1', '1'], [7, 0, 1]), ([], [0])],
)
def test_seeds(words, seeds, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, 'run', lambda options: seen.append(options.seeds))
    commands_ablate.main(options(tmp_path, *(['--seeds', *words] if words else [])))
    assert seen == [seeds]


@pytest.mark.parametrize('text', ['3-1', '0-100000', 'x', '1-'])
def test_seeds_that_are_none(text, tmp_path, capsys):
    with pytest.raises(SystemExit):
        options(tmp_path, '--seeds', text)
    assert '--seeds' in capsys.readouterr().err


@pytest.mark.parametrize(
    'flags, named', [(['--gan', 'baseline'], '--gan'), (['--jobs', '0'], '--jobs 0')]
)
def test_flags_that_cannot_be(flags, named, tmp_path):
    with pytest.raises(UserError, match=named):
        commands_ablate.main(options(tmp_path, *flags))


# Runs.


def test_what_is_run(tmp_path):
    given = ['--config_file', 'small.yaml', '--params_override', 'a=1', '--data_dir', 'here']
    chosen = options(tmp_path, *given)
    chosen.eval_split = 'test'
    job = ablate.make_job(chosen, ablate.TABLES['6'][1], 4)
    folder = tmp_path / 'runs' / 'layers4-4'
    assert (job.name, job.folder) == ('layers4-4', folder)
    assert job.results == folder / 'eval' / 'test' / 'results.json'
    assert (job.train[0], job.evaluate[0]) == ('train', 'evaluate')
    for command in (job.train, job.evaluate):
        assert value(command, '--model_dir') == str(folder)
        assert value(command, '--data_dir') == 'here'
    assert value(job.train, '--seed') == '4' and value(job.train, '--config_file') == 'small.yaml'
    # The arm's own override comes last, and wins.
    words = job.train
    overrides = [words[i + 1] for i, word in enumerate(words) if word == '--params_override']
    assert overrides == ['a=1', 'task.gan.num_layers=4']
    own = ablate.make_job(chosen, ablate.Arm('own', config_file='own.yaml'), 0)
    assert value(own.train, '--config_file') == 'own.yaml'


@pytest.fixture
def trained(monkeypatch):
    """What is trained and reported, by `run`, without training; names in `failing` fail."""
    calls = {'trained': [], 'loaded': [], 'written': [], 'failing': {}}

    def run_all(todo, num_at_once):
        for job in todo:
            calls['trained'].append(job.name)
            if job.name not in calls['failing']:
                job.results.parent.mkdir(parents=True)
                job.results.write_text('{}')
        return calls['failing']

    def write(loaded, result, path):
        calls['written'].append((path, result))

    monkeypatch.setattr(ablate.jobs, 'run_all', run_all)
    monkeypatch.setattr(ablation, 'load', lambda folders, *_: calls['loaded'].append(folders))
    monkeypatch.setattr(ablation, 'compare', lambda *_: {})
    monkeypatch.setattr(ablation, 'format_text', lambda result: '')
    monkeypatch.setattr(ablation, 'write', write)
    return calls


def test_what_is_done_is_not_done_again(tmp_path, trained, capsys):
    flags = ['--seeds', '0-1']
    commands_ablate.main(options(tmp_path, *flags))
    # Every arm once before the second seed.
    names = [f'{arm.name}-{seed}' for seed in (0, 1) for arm in ablate.TABLES['6']]
    assert trained['trained'] == names
    commands_ablate.main(options(tmp_path, '--seeds', '0-2'))
    assert trained['trained'][6:] == ['layers3-2', 'layers4-2', 'combined-2']
    assert f'already evaluated: {", ".join(names)}' in capsys.readouterr().out
    assert list(trained['loaded'][1]['layers3']) == [0, 1, 2]
    path, result = trained['written'][1]
    assert path == tmp_path / 'runs' / 'ablation-6.html'
    assert result['settings']['layers3']['override'] == 'task.gan.num_layers=3'
    # An arm that two tables share is trained once.
    commands_ablate.main(options(tmp_path, '--seeds', '0', table='5'))
    assert trained['trained'][9:] == ['baseline-0', 'adversarial-0']


def test_other_flags_want_another_folder(tmp_path, trained):
    commands_ablate.main(options(tmp_path))
    with pytest.raises(UserError, match='layers3-0 was trained with other flags'):
        commands_ablate.main(options(tmp_path, '--config_file', 'x'))
    assert len(trained['trained']) == 3


def test_the_page_is_made_of_what_is_there(tmp_path, trained):
    trained['failing'] = {'a-1': 'train: no glass (log.txt)'}
    arms = write_arms(tmp_path, 'a: {gan: baseline}\nb: {}\n')
    with pytest.raises(UserError, match='1 of 4 runs failed; .*: a-1: train: no glass'):
        commands_ablate.main(options(tmp_path, '--arms', arms, '--seeds', '0-1'))
    folder = tmp_path / 'runs'
    assert trained['loaded'] == [
        {'a': {0: str(folder / 'a-0')}, 'b': {s: str(folder / f'b-{s}') for s in (0, 1)}}
    ]
    ((path, result),) = trained['written']
    assert path.name == 'ablation-weights.html' and result['failed'] == trained['failing']


def test_without_any_run_there_is_no_page(tmp_path, trained):
    trained['failing'] = dict.fromkeys(('layers3-0', 'layers4-0', 'combined-0'), 'no glass')
    with pytest.raises(UserError, match='3 of 3 runs failed'):
        commands_ablate.main(options(tmp_path))
    assert trained['written'] == []


def test_the_papers_figures():
    assert 'layers3: mask AP 0.5624, box AP 0.5470' in ablate.format_paper('6')
    assert ablate.format_paper('ours') == ''
