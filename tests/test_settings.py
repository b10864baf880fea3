"""From flags and YAML to settings: the paper's gland row, overrides, and one line per mistake."""

import argparse
import pathlib

import pytest
import yaml
from official.core import train_utils

from gan_mrcnn import configs, settings
from gan_mrcnn.data.readers import gland_demo
from gan_mrcnn.data.records import records
from gan_mrcnn.prediction import checkpoint
from gan_mrcnn.training import run as training_run
from gan_mrcnn.utils.errors import UserError

CONFIG_FILES = sorted(settings.CONFIGS_DIR.glob('*.yaml'))
DATASET = gland_demo.DemoGlands()


def make_flags(**values):
    flags = {
        'dataset': 'gland',
        'config_file': str(settings.CONFIGS_DIR / 'gland.yaml'),
        'cache_dir': '~/cache',
    }
    return settings.Flags(**{**flags, **values})


def load(*overrides, **flags):
    return settings.load_config(make_flags(params_override=list(overrides), **flags), DATASET)


def message_of(call, *args, **kwargs):
    """The one line that a mistake ends with."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    assert '\n' not in message
    return message


# The paper's row: Le et al., section 4.6, and section 3 for the optimizers.


def test_gland_config_is_the_papers_row():
    config = load()
    task, trainer = config.task, config.trainer
    assert task.model.backbone.type == 'resnet'
    assert task.model.backbone.resnet.model_id == 50
    assert list(task.train_data.parser.train_short_side) == [400, 522]
    assert task.validation_data.parser.test_short_side == 522
    assert task.train_data.global_batch_size == 2 * 4
    assert trainer.train_steps == 2000
    rates = trainer.optimizer_config.learning_rate
    assert rates.type == 'stepwise'
    assert list(rates.stepwise.boundaries) == [1500]
    assert list(rates.stepwise.values) == [0.01, 0.001]
    optimizer = trainer.optimizer_config.optimizer
    assert optimizer.get().momentum == 0.9
    assert not optimizer.get().nesterov
    assert task.losses.l2_weight_decay == 1e-4
    assert task.gan.mode == 'combined'
    assert task.gan.learning_rate_ratio == pytest.approx(1 / 5)
    assert (task.gan.weight('mask_weight'), task.gan.weight('box_weight')) == (0.5, 0.025)
    assert task.gan.num_layers == 5


# Le et al., sections 4.3 to 4.5, typed again: backbone, short sides in training and test, images
# per GPU on two GPUs, iterations, boundaries.
ROWS = {
    'phone': (101, [400, 600], 400, 8, 27000, [18000, 24000]),
    'cityscapes': (50, [800, 1024], 1024, 4, 24000, [18000]),
    'coco': (101, [800, 800], 800, 4, 180000, [120000, 160000]),
}


@pytest.mark.parametrize('name', ROWS)
def test_other_configs_are_the_papers_rows(name):
    depth, train_side, test_side, per_gpu, steps, boundaries = ROWS[name]
    dataset = argparse.Namespace(name=name, is_demo=False)
    path = settings.default_config_file(dataset)
    assert path.name == f'{name}.yaml'
    config = load(config_file=str(path))
    task, trainer = config.task, config.trainer
    assert task.model.backbone.resnet.model_id == depth
    assert list(task.train_data.parser.train_short_side) == train_side
    assert task.validation_data.parser.test_short_side == test_side
    assert task.train_data.global_batch_size == 2 * per_gpu
    assert trainer.train_steps == steps
    rates = trainer.optimizer_config.learning_rate.stepwise
    assert list(rates.boundaries) == boundaries
    assert list(rates.values) == [0.01, 0.001, 0.0001][: len(boundaries) + 1]
    assert task.gan.learning_rate_ratio == pytest.approx(1 / 5)
    # The longest image of the usual kind fits at the largest short side.
    longest = {'phone': 16 / 9, 'cityscapes': 2, 'coco': 1333 / 800}[name] * max(train_side)
    assert max(task.model.input_size) >= longest
    # More than 4,000 of the phones' 533.
    assert task.train_data.expand_to == (4320 if name == 'phone' else 0)


@pytest.mark.parametrize('name', ['coco_format', 'label_images'])
def test_own_data_have_settings_of_their_own(name):
    path = settings.default_config_file(argparse.Namespace(name=name, is_demo=False))
    assert path.name == 'own_data.yaml' and path in CONFIG_FILES


# The linear rule.


def rates_of(config):
    optimizer = config.trainer.optimizer_config
    stepwise = optimizer.learning_rate.stepwise.values
    return [*stepwise, optimizer.warmup.linear.warmup_learning_rate]


@pytest.mark.parametrize('batch, factor', [(2, 1 / 4), (16, 2), (8, 1)])
def test_learning_rates_follow_the_batch(batch, factor):
    config = load(f'task.train_data.global_batch_size={batch}')
    assert rates_of(config) == pytest.approx([0.01 * factor, 0.001 * factor, 0.001 * factor])
    lines = training_run.learning_rate_line(config)
    assert bool(lines) == (factor != 1)
    if lines:
        ((_, text),) = lines
        assert f'{batch}/8' in text and f'train_steps={int(2000 / factor)} ' in text


def test_several_devices_are_told_what_they_share_and_the_rate():
    config = load('task.train_data.global_batch_size=32')
    assert training_run.batch_line(config, 1) == []
    ((_, text),) = training_run.batch_line(config, 8)
    assert text == '32 images a step, 4 on each of 8 devices; learning rate 0.04'


@pytest.mark.parametrize(
    'text, rates',
    [
        (
            'trainer.optimizer_config.learning_rate.stepwise.values=[0.02, 0.002]',
            [0.02, 0.002, 0.001],
        ),
        (
            '{trainer: {optimizer_config: {warmup: {linear: {warmup_learning_rate: 0.004}}}}}',
            [0.01, 0.001, 0.004],
        ),
    ],
)
def test_a_learning_rate_that_is_given_is_left_alone(text, rates):
    config = load('task.train_data.global_batch_size=2', text)
    assert rates_of(config) == pytest.approx(rates)
    assert training_run.learning_rate_line(config) == []


def test_another_schedule_alone_does_not_stop_the_rule():
    config = load(
        'task.train_data.global_batch_size=2,task.gan.learning_rate_ratio=0.5',
        'trainer.optimizer_config.learning_rate.stepwise.boundaries=[100]',
    )
    assert rates_of(config) == pytest.approx([0.0025, 0.00025, 0.00025])


def test_the_rule_holds_for_other_schedules(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(
        'task: {model: {input_size: [64, 64, 3]}, train_data: {global_batch_size: 4}}\n'
        'trainer: {optimizer_config: {learning_rate: {type: cosine, cosine: '
        '{initial_learning_rate: 0.02, decay_steps: 100}}}}\n'
    )
    config = load('task.train_data.global_batch_size=2', config_file=str(path))
    rates = config.trainer.optimizer_config.learning_rate
    assert rates.type == 'cosine' and rates.get().initial_learning_rate == pytest.approx(0.01)
    assert settings.first_rate(config) == pytest.approx(0.01)


def test_rates_are_not_scaled_twice(tmp_path):
    """As evaluate.py and a resumed run read them."""
    config = load('task.train_data.global_batch_size=2')
    train_utils.serialize_config(config, str(tmp_path))
    again = load(config_file=str(tmp_path / 'params.yaml'))
    assert again.as_dict() == config.as_dict()
    assert rates_of(again) == pytest.approx([0.0025, 0.00025, 0.00025])


def test_gland_config_holds_the_whole_image_at_the_largest_short_side():
    config = load()
    height, width, _ = config.task.model.input_size
    # The set's images are 775x522 and smaller.
    assert height >= 522 and width >= 775
    assert height % 64 == 0 and width % 64 == 0


@pytest.mark.parametrize('path', CONFIG_FILES, ids=lambda path: path.name)
def test_every_config_file_loads_and_says_when_to_stop(path):
    config = load(config_file=str(path))
    trainer = config.trainer
    assert trainer.train_steps > 0
    for interval in (
        trainer.summary_interval,
        trainer.checkpoint_interval,
        trainer.validation_interval,
    ):
        assert interval > 0 and interval % trainer.steps_per_loop == 0
    rates = trainer.optimizer_config.learning_rate
    if rates.type == 'cosine':
        assert rates.get().decay_steps == trainer.train_steps
    else:
        assert rates.get().boundaries[-1] < trainer.train_steps
    assert config.task.train_data.is_training and not config.task.validation_data.is_training
    assert not config.task.validation_data.drop_remainder
    assert config.task.model.num_classes == 2


def test_the_strong_recipe_is_the_small_one_but_for_norm_schedule_and_mask_loss():
    small, strong = (
        load(config_file=str(settings.CONFIGS_DIR / f'gland_{name}.yaml')).as_dict()
        for name in ('small', 'strong')
    )
    assert strong['task']['model'].pop('head_norm') == 'group_norm'
    assert small['task']['model'].pop('head_norm') == 'none'
    assert strong['task']['losses'].pop('mask_weight') == 1.5
    assert small['task']['losses'].pop('mask_weight') == 1.0
    schedule = strong['trainer']['optimizer_config'].pop('learning_rate')
    del small['trainer']['optimizer_config']['learning_rate']
    assert strong == small
    assert schedule['type'] == 'cosine' and schedule['cosine']['initial_learning_rate'] == 0.02
    assert schedule['cosine']['decay_steps'] == strong['trainer']['train_steps']


def test_no_recipe_augments_or_averages_unasked():
    for path in CONFIG_FILES:
        config = load(config_file=str(path))
        parser = config.task.train_data.parser
        assert config.trainer.optimizer_config.ema is None and config.task.patience == 0
        assert not (parser.aug_quarter_turns or parser.aug_stain or parser.aug_copy_paste)
        assert parser.aug_rand_vflip == (path.stem == 'nuclei_small')
        assert parser.aug_scale_min == parser.aug_scale_max == 1.0


@pytest.mark.parametrize(
    'text, part',
    [
        ('aug_stain=1.5', 'aug_stain is 1.5'),
        ('aug_stain=-0.1', 'aug_stain is -0.1'),
        ('aug_copy_paste=1.5', 'aug_copy_paste is 1.5'),
        ('aug_copy_paste=-0.1', 'aug_copy_paste is -0.1'),
        ('aug_scale_min=0.0', 'aug_scale_min is 0.0'),
        ('aug_scale_min=2.0', 'aug_scale_max 1.0'),
        ('aug_quarter_turns=1', 'aug_quarter_turns is 1'),
    ],
)
def test_augmentation_that_cannot_be_is_said_in_one_line(text, part):
    assert part in message_of(load, f'task.train_data.parser.{text}')


def test_patience_is_a_flag(tmp_path):
    assert load(patience=3).task.patience == 3
    config = load('task.patience=-1')
    assert '--patience' in message_of(settings.check_training, config)


def test_there_are_config_files_for_real_and_demo_data():
    assert CONFIG_FILES
    assert settings.default_config_file(DATASET) in CONFIG_FILES
    assert settings.default_config_file(DATASET).name == 'gland_small.yaml'
    real = argparse.Namespace(name='gland', is_demo=False)
    assert settings.default_config_file(real) == settings.CONFIGS_DIR / 'gland.yaml'


def test_saved_settings_load_again_unchanged(tmp_path):
    config = load('task.gan.num_layers=3,task.model.backbone.resnet.padding=same', seed=7)
    train_utils.serialize_config(config, str(tmp_path))
    again = load(config_file=str(tmp_path / 'params.yaml'))
    assert again.as_dict() == config.as_dict()
    assert again.task.model.backbone.resnet.padding == 'same'


def test_settings_of_version_0_1_are_read_by_their_old_name(tmp_path):
    config = load('task.nonfinite.policy=go_back,task.nonfinite.rate_factor=0.25')
    train_utils.serialize_config(config, str(tmp_path))
    path = tmp_path / 'params.yaml'
    values = yaml.safe_load(path.read_text())
    values['task']['blow_ups'] = values['task'].pop('nonfinite')
    path.write_text(yaml.safe_dump(values))
    assert settings.saved_config(path).as_dict() == config.as_dict()
    assert load(config_file=str(path)).as_dict() == config.as_dict()
    assert load('task.blow_ups.policy=skip').task.nonfinite.policy == 'skip'


# Overrides.


@pytest.mark.parametrize(
    'text',
    [
        'trainer.train_steps=7,task.gan.mode=baseline,task.gan.box_weight=2',
        '{trainer: {train_steps: 7}, task: {gan: {mode: baseline, box_weight: 2}}}',
        'trainer:\n  train_steps: 7\ntask:\n  gan: {mode: baseline, box_weight: 2}',
    ],
    ids=['csv', 'flow', 'block'],
)
def test_both_forms_of_override_set_values_and_leave_the_rest(text):
    before, after = load(), load(text)
    assert after.trainer.train_steps == 7
    assert after.task.gan.mode == 'baseline'
    assert after.task.gan.box_weight == 2
    assert after.task.gan.mask_weight == before.task.gan.mask_weight
    assert after.task.model.as_dict() == before.task.model.as_dict()


def test_override_sets_lists():
    config = load('task.train_data.parser.train_short_side=[100,200]')
    assert list(config.task.train_data.parser.train_short_side) == [100, 200]


def test_override_takes_paths():
    config = load('task.backbone_weights=/data/r50-v1.0.npz,task.model.backbone.resnet.model_id=34')
    assert config.task.backbone_weights == '/data/r50-v1.0.npz'
    assert config.task.model.backbone.resnet.model_id == 34


def test_override_chooses_another_schedule():
    config = load(
        '{trainer: {optimizer_config: {learning_rate: {type: cosine, cosine: '
        '{initial_learning_rate: 0.02, decay_steps: 100}}}}}'
    )
    rates = config.trainer.optimizer_config.learning_rate
    assert rates.type == 'cosine'
    assert rates.get().initial_learning_rate == 0.02


def test_later_overrides_win_and_named_flags_win_over_them():
    config = load('task.seed=1', 'task.seed=2,task.gan.mode=baseline', gan='adversarial_only')
    assert config.task.seed == 2
    assert config.task.gan.mode == 'adversarial_only'
    assert load('task.seed=1', seed=0).task.seed == 0


def test_max_instances_wins_and_is_at_least_one():
    most = lambda config: config.task.train_data.parser.max_num_instances  # noqa: E731
    override = 'task.train_data.parser.max_num_instances=7'
    assert most(load(override)) == 7
    assert most(load(override, max_instances=300)) == 300
    assert '--max_instances' in message_of(load, max_instances=0)


def test_flags_say_where_data_and_cache_are():
    config = load(data_dir='glas', skip_bad=True)
    assert (config.task.dataset, config.task.data_dir, config.task.skip_bad) == (
        'gland',
        'glas',
        True,
    )
    assert config.task.cache_dir == str(pathlib.Path.home() / 'cache')


def test_the_division_of_the_data_is_saved_with_the_run(tmp_path):
    chosen = {'share': 0.8, 'split_seed': 3, 'group_by': 'patient', 'annotations': ['a.json']}
    chosen |= {'crowds': 'objects', 'objects': 'components', 'skip_bad_annotations': True}
    train_utils.serialize_config(load(**chosen), str(tmp_path))
    saved = yaml.safe_load((tmp_path / 'params.yaml').read_text())['task']
    assert {name: saved[name] for name in chosen} == chosen
    # evaluate.py has no flags for it: the run says it, whatever settings are chosen.
    for config_file in (None, 'other.yaml'):
        options = settings.Flags(dataset='gland', config_file=config_file, model_dir=str(tmp_path))
        checkpoint.use_saved_settings(options)
        assert {name: getattr(options, name) for name in chosen} == chosen
        assert options.config_file == (config_file or str(tmp_path / 'params.yaml'))
    # Not for other data.
    other = settings.Flags(dataset='coco', config_file='other.yaml', model_dir=str(tmp_path))
    checkpoint.use_saved_settings(other)
    assert other.data_dir is None and other.share is None


def test_flags_that_are_not_given_divide_nothing():
    task = load(share=None, split_seed=None, group_by=None, annotations=[]).task
    assert (task.share, task.split_seed, task.group_by, task.annotations) == (0, 0, '', [])
    assert (task.crowds, task.objects, task.skip_bad_annotations) == ('ignored', '', False)


def test_an_option_that_a_data_set_does_not_take_is_named():
    message = message_of(settings.load_dataset, make_flags(share=0.9))
    assert message == '--split is not for gland, whose splits are fixed; leave it out'


def test_from_scratch_the_whole_backbone_is_trained():
    backbone = load('task.model.backbone.resnet.freeze_stages=2').task.model.backbone
    assert backbone.resnet.freeze_stages == 0
    assert backbone.resnet.bn_trainable is True


def test_backbone_weights_keep_stem_stage_1_and_batch_norm_frozen():
    backbone = load('task.backbone_weights=weights.npz').task.model.backbone
    assert backbone.resnet.freeze_stages == 2
    assert backbone.resnet.bn_trainable is False


def test_home_is_found_in_the_path_of_the_weights():
    weights = load('{task: {backbone_weights: ~/r50.npz}}').task.backbone_weights
    assert weights == str(pathlib.Path.home() / 'r50.npz')


# Mistakes: one line that names the thing and what would be right.


@pytest.mark.parametrize(
    'text, key, valid',
    [
        ('trainer.train_step=3', 'trainer.train_step;', 'train_steps'),
        ('task.gan.weigth=3', 'task.gan.weigth;', 'box_weight'),
        ('task.model.backbone.resnet.modelid=3', 'task.model.backbone.resnet.modelid;', 'model_id'),
        ('{tasks: {gan: {mode: baseline}}}', 'tasks;', 'trainer'),
    ],
)
def test_unknown_key_is_named_with_the_valid_ones(text, key, valid):
    message = message_of(load, text)
    assert '--params_override' in message and f'unknown key {key}' in message
    assert valid in message


def test_masks_have_the_cells_that_records_have():
    message = message_of(load, 'task.train_data.parser.mask_crop_size=56')
    assert message == 'task.train_data.parser.mask_crop_size is 56, not one of 112'


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('task:\n  gan: {modes: baseline}\n')
    message = message_of(load, config_file=str(path))
    assert str(path) in message and 'task.gan.modes' in message and 'mode' in message


@pytest.mark.parametrize(
    'text, key',
    [
        ('trainer.train_steps=many', 'trainer.train_steps'),
        ('trainer.train_steps=1.5', 'trainer.train_steps'),
        ('trainer.train_steps=true', 'trainer.train_steps'),
        ('task.gan.box_weight=big', 'task.gan.box_weight'),
        ('task.gan.mode=3', 'task.gan.mode'),
        ('task.skip_bad=1', 'task.skip_bad'),
        ('task.train_data.parser.train_short_side=400', 'task.train_data.parser.train_short_side'),
        ('task.gan=3', 'task.gan'),
        ('task.model.backbone.type=resnett', 'resnett'),
    ],
)
def test_wrong_kind_of_value_is_named(text, key):
    message = message_of(load, text)
    assert '--params_override' in message and key in message


def test_unknown_data_set_names_the_known_ones():
    message = message_of(settings.load_dataset, make_flags(dataset='nosuch'))
    assert 'nosuch' in message and 'gland' in message


def test_wrong_data_dir_is_never_replaced_by_the_demo_set():
    message = message_of(settings.load_dataset, make_flags(data_dir='/nowhere'))
    assert '/nowhere' in message and 'Grade.csv' in message


def test_demo_set_is_said_loudly(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = settings.load_dataset(make_flags())
    assert dataset.is_demo
    assert dataset.notice in capsys.readouterr().out


def test_unknown_split_names_the_valid_ones(tmp_path):
    config = load(cache_dir=str(tmp_path / 'cache'))
    message = message_of(records.ensure_splits, DATASET, ['train', 'nosuch'], config.task)
    assert 'nosuch' in message
    for split in DATASET.splits:
        assert split in message
    # Seen before anything is converted.
    assert not (tmp_path / 'cache').exists()


def test_missing_config_file_is_named(tmp_path):
    message = message_of(load, config_file=str(tmp_path / 'nosuch.yaml'))
    assert 'nosuch.yaml' in message and str(settings.CONFIGS_DIR) in message


@pytest.mark.parametrize('text', ['task: {gan: [', 'task:\n\t- x', '- task\n- trainer', 'hello'])
def test_bad_yaml_names_the_file(text, tmp_path):
    path = tmp_path / 'bad.yaml'
    path.write_text(text)
    assert str(path) in message_of(load, config_file=str(path))


@pytest.mark.parametrize(
    'text', ['{task: {gan: ', 'trainer.train_steps', 'trainer.train_steps=[1', '=3']
)
def test_bad_override_is_named(text):
    assert '--params_override' in message_of(load, text)


@pytest.mark.parametrize('call', [{'gan': 'nosuch'}, {}])
def test_bad_gan_mode_names_the_valid_ones(call):
    overrides = [] if call else ['task.gan.mode=nosuch']
    message = message_of(load, *overrides, **call)
    assert 'nosuch' in message
    for mode in ('combined', 'baseline', 'adversarial_only'):
        assert mode in message


@pytest.mark.parametrize(
    'overrides, named',
    [
        ('task.gan.r1=10', 'normalization=spectral'),
        ('task.gan.r1=-1,task.gan.normalization=spectral', 'r1 is -1'),
        ('task.gan.normalization=none', 'batch, spectral'),
        ('task.gan.box_loss=wgan', 'cross_entropy, hinge'),
        ('task.gan.mask_judgement=patch', 'roi, pixel'),
        ('task.gan.rescore_exponent=-1', 'rescore_exponent is -1'),
        ('task.gan.rescore_exponent=1,task.gan.mode=baseline', 'gan.mode is baseline'),
        ('task.gan.ramp=1.5', 'ramp is 1.5'),
        ('task.gan.control=random', "'', frozen, shuffled"),
        ('task.gan.control=frozen,task.gan.mode=baseline', 'gan.mode is baseline'),
        ('task.gan.control=shuffled,task.gan.detach_features=false', 'gan.detach_features'),
    ],
)
def test_settings_of_the_game_that_make_no_sense_are_refused(overrides, named):
    message = message_of(load, overrides)
    assert 'task.gan.' in message and named in message and '\n' not in message


def test_config_files_hold_known_keys_only_once():
    """A key that YAML reads twice would silently drop the first value."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            keys = [self.construct_object(key) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return super().construct_mapping(node, deep)

    for path in CONFIG_FILES:
        yaml.load(path.read_text(), Strict)


def test_optimizer_config_divides_the_rate_by_ten_at_each_boundary():
    params = configs.optimizer_config(0.01, [18000, 24000], 100)
    assert params.learning_rate.stepwise.values == pytest.approx([0.01, 0.001, 0.0001])
    assert params.warmup.linear.warmup_learning_rate == pytest.approx(0.001)
    assert params.warmup.linear.warmup_steps == 100


def test_a_run_of_version_0_1_weighed_the_discriminators_losses_by_1(tmp_path):
    path = tmp_path / 'params.yaml'
    saved = {
        'mode': 'combined',
        'box_weight': 0.025,
        'mask_weight': 0.5,
        'num_layers': 5,
        'learning_rate_ratio': 0.2,
        'detach_features': True,
    }
    path.write_text(yaml.safe_dump({'task': {'gan': saved, 'clip_norm': 10.0}}))
    gan = settings.saved_config(path).task.gan
    own = ('discriminator_box_weight', 'discriminator_mask_weight')
    assert [gan.weight(name) for name in own] == [1.0, 1.0] and gan.clip_norm == 10.0
    # A run of this version, and a file that somebody wrote, have the preset's.
    for text, weights in (
        ({**saved, 'preset': 'authors_code'}, [0.025, 0.5]),
        ({'detach_features': False}, [1.0, 1.0]),
    ):
        path.write_text(yaml.safe_dump({'task': {'gan': text, 'clip_norm': 10.0}}))
        gan = settings.saved_config(path).task.gan
        assert [gan.weight(name) for name in own] == weights and gan.clip_norm == 0.0


@pytest.mark.parametrize(
    'override, key',
    [
        ('task.model.roi_sampler.num_sampled_rois=9999', 'num_sampled_rois is 9999, but there are'),
        ('task.model.roi_generator.num_proposals=0', 'num_proposals is 0'),
        ('task.model.detection_generator.max_num_detections=0', 'max_num_detections is 0'),
        ('task.seed=-1', '--seed'),
    ],
)
def test_numbers_that_no_network_can_have_are_refused_at_the_start(override, key):
    flags = settings.Flags(dataset='gland', params_override=[override])
    with pytest.raises(UserError, match=key) as error:
        settings.load_config(flags, gland_demo.DemoGlands())
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'override',
    [
        *('trainer.train_steps=0', 'trainer.steps_per_loop=0', 'trainer.max_to_keep=0'),
        *('task.train_data.global_batch_size=0', 'trainer.checkpoint_interval=-1'),
    ],
)
def test_numbers_that_no_training_can_have_are_refused_at_the_start(override):
    flags = settings.Flags(dataset='gland', params_override=[override])
    config = settings.load_config(flags, gland_demo.DemoGlands())
    with pytest.raises(UserError, match=f'{override.split("=")[0]} is'):
        settings.check_training(config)
