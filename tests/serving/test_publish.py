"""Weights that were published do what the run does, in every command that takes them."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

from gan_mrcnn.commands import evaluate as evaluate_command
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.prediction import checkpoint, model_card
from gan_mrcnn.serving import publish
from gan_mrcnn.utils.errors import UserError
from tests import programs
from tests.serving.tiny import photo


@pytest.fixture(scope='module')
def run(exported, tmp_path_factory):
    """The tiny run, evaluated at its step, and with figures of another one."""
    run = shutil.copytree(exported.run, tmp_path_factory.mktemp('publish') / 'run')
    figures = {kind: {'AP': 0.25, 'AP50': 0.5, 'AP75': None} for kind in ('box', 'mask')}
    results = {
        'figures': {**figures, 'boundary': figures['box']},
        'split': 'val',
        'num_images': 4,
        'data_fingerprint': 'abc' * 20,
        'seed': 3,
        'notice': 'A\nNOTICE',
        'step': 7,
    }
    for split, step in (('val', 7), ('train', 6)):
        folder = run / 'eval' / split
        folder.mkdir(parents=True)
        text = json.dumps({**results, 'split': split, 'step': step})
        (folder / 'results.json').write_text(text)
    return run


@pytest.fixture(scope='module')
def opened(run):
    return checkpoint.open_run(str(run))


@pytest.fixture(scope='module')
def published(run, opened, tmp_path_factory):
    out = tmp_path_factory.mktemp('out') / 'weights'
    publish.publish(opened, str(run), str(out))
    return out


def test_what_is_written(published, run, exported):
    assert programs.files_in(published) == {
        *('model.safetensors', 'model.json', 'class_names.txt', 'params.yaml', 'README.md'),
        'SHA256SUMS',
    }
    subprocess.run(['sha256sum', '-c', '--quiet', 'SHA256SUMS'], cwd=published, check=True)
    assert (published / 'class_names.txt').read_text() == 'gland\nvessel\n'
    notes = weights_file.read_notes(str(published / 'model.safetensors'))
    assert notes['settings'] == yaml.safe_load((published / 'params.yaml').read_text())
    card = model_card.from_values(notes['card'], 'x')
    assert card == model_card.read(published) and card.step == 7
    for path in published.iterdir():
        # Neither where the run was nor where its data are.
        assert os.fsencode(exported.run.parent) not in path.read_bytes()


def test_the_model_card_says_what_the_numbers_are_of(published):
    text = (published / 'README.md').read_text()
    assert 'masks of gland, vessel.' in text and 'Step 7, seed 0, started from\nrandom' in text
    assert 'Split `val`, 4 images (fingerprint abcabcabcabc), one run with seed\n3:' in text
    assert 'A NOTICE' in text and '| box | 0.250 | 0.500 | none |' in text
    assert 'not known to gan-mrcnn' in text and 'train`' not in text.split('## Figures')[1][:200]


def test_the_network_gives_the_same_to_float16s_rounding(published, opened):
    again = checkpoint.open_published(str(published / 'model.safetensors'))
    assert again.card == opened.card
    wanted = weights_file.named_variables(opened.model)
    for name, variable in weights_file.named_variables(again.model).items():
        np.testing.assert_allclose(variable, wanted[name], rtol=2**-11, atol=3e-8, err_msg=name)
    images = tf.constant(np.stack([photo((60, 80), seed) for seed in range(2)]))
    found, before = (one.module().detect_pixels(images) for one in (again, opened))
    boxes, scores = found['detection_boxes'].numpy(), found['detection_scores'].numpy()
    # The tiny network's weights are random, and thousandfold in its last layers.
    np.testing.assert_allclose(scores[:, 0], before['detection_scores'][:, 0], atol=0.05)
    np.testing.assert_allclose(boxes[:, 0], before['detection_boxes'][:, 0], atol=1.0)


def test_it_is_written_whole_or_not_at_all(opened, run, tmp_path):
    with programs.largest_file(100_000), pytest.raises(UserError, match='OUT .*File too large'):
        publish.publish(opened, str(run), str(tmp_path / 'out'))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'out').mkdir()
    with pytest.raises(UserError, match='out exists'):
        publish.publish(opened, str(run), str(tmp_path / 'out'))


def test_figures_of_another_step_are_told(opened, run, tmp_path):
    told = publish.publish(opened, str(run), str(tmp_path / 'out')).notes
    assert len(told) == 1 and 'train/results.json is of step 6' in told[0]


def test_publish_as_it_is_typed(run, tmp_path):
    done = programs.run('publish', run, tmp_path / 'out')
    assert done.status == 0, done.err
    assert 'published ckpt-7 (step 7)' in done.out
    assert 'exists' in programs.refusal(programs.run('publish', run, tmp_path / 'out'), 'publish')
    line = programs.refusal(programs.run('publish', tmp_path, tmp_path / 'x'), 'publish')
    assert 'has no params.yaml' in line and not (tmp_path / 'x').exists()
    (tmp_path / 'file').touch()
    line = programs.refusal(programs.run('publish', run, tmp_path / 'file/x'), 'publish')
    assert 'is a file, not a folder' in line


def test_predict_takes_an_address(published, tmp_path):
    Image.fromarray(photo((60, 80))).save(tmp_path / 'a.png')
    sums = dict(line.split()[::-1] for line in (published / 'SHA256SUMS').read_text().splitlines())
    address = (published / 'model.safetensors').as_uri()
    command = ['predict', '--cache_dir', tmp_path / 'cache', '--out', tmp_path / 'out']
    command.append(tmp_path / 'a.png')
    source = f'{address}#sha256={sums["model.safetensors"]}'
    done = programs.run(*command, '--weights', source)
    assert done.status == 0, done.err
    assert len(json.loads((tmp_path / 'out/predictions.json').read_text())['images']) == 1
    line = programs.refusal(programs.run(*command, '--weights', f'{source[:-1]}x'), 'predict')
    assert 'has no #sha256=' in line
    line = programs.refusal(programs.run(*command, '--weights', source, '--model', 'x'), 'predict')
    assert line.endswith('--model and --weights are two models; leave one out')
    line = programs.refusal(programs.run(*command), 'predict')
    assert line.endswith('--model is missing; give that or --weights')


def test_evaluate_writes_beside_the_weights_or_where_it_is_told(published, exported, tmp_path):
    folder = shutil.copytree(published, tmp_path / 'weights')
    data = ['--dataset', 'label_images', '--data_dir', exported.run.parent / 'data']
    command = ['evaluate', *data, '--cache_dir', tmp_path / 'c', '--split', 'val', '--weights']
    done = programs.run(*command, folder)
    assert done.status == 0, done.err
    results = json.loads((folder / 'eval/val/results.json').read_text())
    assert results['step'] == 7
    assert results['checkpoint'] == str(folder / 'model.safetensors')
    # What lies beside the files that are listed does not matter.
    line = programs.refusal(programs.run(*command, 'http://127.0.0.1:9/x'), 'evaluate')
    assert '--model_dir is missing' in line
    line = programs.refusal(programs.run(*command, folder, '--saved_model', 'x'), 'evaluate')
    assert '--weights goes without' in line
    (data_dir := tmp_path / 'data').mkdir()
    shutil.copytree(data[-1], data_dir, dirs_exist_ok=True)
    text = (data_dir / 'classes.csv').read_text().replace('vessel', 'other')
    (data_dir / 'classes.csv').write_text(text)
    command[command.index('--data_dir') + 1] = data_dir
    line = programs.refusal(programs.run(*command, folder), 'evaluate')
    assert 'knows gland, vessel, but the classes of label_images are gland, other' in line


@pytest.mark.parametrize('given, folder', [('a', 'a'), ('a/m.safetensors', 'a'), ('m', '.')])
def test_results_go_beside_the_weights(given, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    assert evaluate_command._beside_weights(given) == folder


@pytest.mark.slow
def test_export_takes_them(published, tmp_path):
    done = programs.run('export', '--weights', published, '--export_dir', tmp_path)
    assert done.status == 0, done.err
    assert model_card.read(tmp_path / 'model/1/assets') == model_card.read(published)
