"""Files of a run that are cut short, changed or gone: the next start goes on or says why not."""

import json
import random
import shutil

import pytest
import tensorflow as tf

from gan_mrcnn.training import checkpoints
from gan_mrcnn.utils.errors import UserError
from tests import tiny
from tests.faults import runs

# Of the places in files.
SEED = 11


def cut(path, rng) -> None:
    """Keeps a part of a file, perhaps nothing."""
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path, rng) -> None:
    """Changes one bit."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def remove(path, rng) -> None:
    path.unlink()


DAMAGES = (cut, flip, remove)


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 1 to 3 of a few values; all are the step's number."""
    step = tf.Variable(0, dtype=tf.int64)
    parts = {name: tf.Variable(tf.zeros([50, 7])) for name in ('model', 'optimizer')}
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(global_step=step, **parts), str(tmp_path / 'run'), max_to_keep=3
    )
    for number in (1, 2, 3):
        step.assign(number)
        for part in parts.values():
            part.assign(tf.fill(part.shape, float(number)))
        manager.save(checkpoint_number=number)
    return tmp_path / 'run'


def step_and_values(path):
    found = tiny.values(path)
    step = int(found.pop('global_step/.ATTRIBUTES/VARIABLE_VALUE'))
    assert len(found) == 2 and all((value == step).all() for value in found.values())
    return step


@pytest.mark.parametrize('part', ['index', 'data-00000-of-00001', 'both'])
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(part, damage, saved, tmp_path):
    """Thirty places each; a bit that changes nothing that is read is no damage."""
    rng = random.Random(f'{SEED} {part} {damage.__name__}')
    found = []
    for trial in range(30):
        folder = shutil.copytree(saved, tmp_path / f'trial{trial}')
        parts = ['index', 'data-00000-of-00001'] if part == 'both' else [part]
        for one in parts:
            damage(folder / f'ckpt-3.{one}', rng)
        path = checkpoints.newest_sound(str(folder))
        found.append(step_and_values(path))
        assert tf.train.latest_checkpoint(str(folder)) == path
        if found[-1] == 2 and (part, damage) != ('index', remove) and part != 'both':
            assert (folder / checkpoints.DAMAGED / 'ckpt-3.index').is_file()
    assert set(found) <= {2, 3}
    # The place of a bit may be one that nobody reads, but seldom.
    assert found.count(2) >= 24


@pytest.mark.parametrize('damage', DAMAGES)
def test_the_list_of_checkpoints_is_not_needed(damage, saved):
    damage(saved / 'checkpoint', random.Random(SEED))
    assert step_and_values(checkpoints.newest_sound(str(saved))) == 3
    assert step_and_values(tf.train.latest_checkpoint(str(saved))) == 3


def test_without_any_sound_checkpoint_nothing_begins_anew(saved):
    for step in (1, 2, 3):
        cut(saved / f'ckpt-{step}.index', random.Random(SEED))
    for _ in range(2):
        # Also the next start does not take the folder for an empty one.
        with pytest.raises(UserError, match='none of the checkpoints') as error:
            checkpoints.newest_sound(str(saved))
        assert '\n' not in str(error.value) and str(saved) in str(error.value)
    kept = saved / checkpoints.DAMAGED
    assert len(list(kept.glob('ckpt-*'))) == 6


# Files of a run that are damaged together.
GROUPS = [
    ('ckpt-6.index', 'status.json'),
    ('ckpt-6.data-00000-of-00001', 'checkpoint'),
    ('validations.json', 'nonfinite.json', 'best/checkpoint'),
    ('best/best_ckpt-*.index', 'best/best_ckpt-*.data-00000-of-00001'),
]


def halve(model_dir, pattern):
    """Cuts a file in the middle; its path."""
    (path,) = model_dir.glob(pattern)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.faults
@pytest.mark.parametrize('patterns', runs.some(GROUPS, 2))
def test_a_run_with_damaged_files_goes_on(patterns, site, whole, tmp_path):
    """For two steps, with a validation at the end."""
    model_dir = shutil.copytree(whole, tmp_path / 'run')
    (model_dir / 'nonfinite.json').write_text(
        '[{"step": 2, "policy": "skip", "images": ["a.png"]}]'
    )
    for pattern in patterns:
        halve(model_dir, pattern)
    done = site.train(model_dir, steps=runs.STEPS + 2)
    assert runs.ended_well(done)
    step = 4 if patterns[0].startswith('ckpt-6') else 6
    assert f'going on from step {step}' in done.out
    assert tf.train.latest_checkpoint(str(model_dir)).endswith(f'ckpt-{runs.STEPS + 2}')
    status = json.loads((model_dir / 'status.json').read_text())
    assert (status['state'], status['step']) == ('finished', runs.STEPS + 2)
    best = tf.train.latest_checkpoint(str(model_dir / 'best'))
    assert best.endswith(f'-{status["best"]["step"]}') and tiny.values(best)


@pytest.mark.faults
def test_damaged_settings_of_a_run_are_reported(site, whole, tmp_path):
    model_dir = shutil.copytree(whole, tmp_path / 'run')
    path = model_dir / 'params.yaml'
    text = path.read_text()
    # Within a name: cut behind a whole line it may be settings still.
    path.write_text(text[: text.rindex(':', 0, len(text) // 2)])
    before = runs.hashes(model_dir)
    line = runs.refusal(site.train(model_dir))
    assert str(path) in line and 'remove it' in line
    assert runs.hashes(model_dir) == before
