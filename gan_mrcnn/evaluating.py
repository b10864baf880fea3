# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint or a SavedModel: predictions, figures and pictures of one split.

Writes into `MODEL_DIR/eval/SPLIT`: `predictions.json` (COCO results, with the data set's own
category ids), `results.json` (figures and all that made them) and `pictures.png` (image, truth and
prediction side by side).
"""

import argparse
import pathlib
from typing import Optional

import numpy as np
import tensorflow as tf
import tqdm
import yaml
from official.core import train_utils

from gan_mrcnn import experiment, visualization
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import base
from gan_mrcnn.datasets import options as data_options
from gan_mrcnn.errors import UserError
from gan_mrcnn.evaluation import coco, paper, pictures, predictions
from gan_mrcnn.serving import about as about_lib
from gan_mrcnn.serving import predictor as predictor_lib

NUM_PICTURES = 6


def find_checkpoint(model_dir: str, which: str) -> str:
    """Path of a checkpoint.

    Args:
      model_dir: of the run.
      which: 'best' (by validation mask AP; the last where none was chosen), 'last', or a path.

    Raises:
      UserError: there is none.
    """
    if which not in ('best', 'last'):
        if not tf.io.gfile.exists(f'{which}.index'):
            raise UserError(f'--checkpoint {which}: there is no {which}.index')
        return which
    folders = [f'{model_dir}/best', model_dir] if which == 'best' else [model_dir]
    for folder in folders:
        path = tf.train.latest_checkpoint(folder)
        if path:
            return path
    raise UserError(f'--model_dir {model_dir} holds no checkpoint; train first, or name another')


def evaluate(
    config,
    dataset: base.Dataset,
    split: str,
    model_dir: str,
    checkpoint: str,
    saved_model: Optional[str] = None,
) -> dict:
    """Evaluates one checkpoint, or what was exported from one, on one split.

    Args:
      config: the experiment.
      dataset: where `split` is.
      split: every image of it is evaluated.
      model_dir: of the run; results go below it.
      checkpoint: see `find_checkpoint`.
      saved_model: folder of a SavedModel that `gan_mrcnn.serving.export` wrote, in place of the
        checkpoint.

    Returns:
      What `results.json` holds.
    """
    if saved_model:
        path = saved_model
        found, step, record_set = _predict_saved_model(config, dataset, split, saved_model)
    else:
        path = find_checkpoint(model_dir, checkpoint)
        found, step, record_set = _predict_checkpoint(config, dataset, split, path)

    folder = pathlib.Path(model_dir) / 'eval' / split
    folder.mkdir(parents=True, exist_ok=True)
    figures = coco.evaluate_coco(record_set.annotation_file, found)
    own_ids = [
        {**prediction, 'category_id': dataset.category_ids[prediction['category_id'] - 1]}
        for prediction in found
    ]
    predictions.save_predictions(str(folder / 'predictions.json'), own_ids)
    results = {
        'figures': figures,
        'dataset': dataset.name,
        'split': split,
        'num_images': record_set.num_examples,
        'notice': dataset.notice,
        'data_fingerprint': record_set.fingerprint,
        'checkpoint': path,
        'step': step,
        'seed': config.task.seed,
        'config': config.as_dict(),
    }
    results = paper.write_results(str(folder / 'results.json'), results)
    visualization.save_png(
        str(folder / 'pictures.png'),
        pictures.contact_sheet(record_set, _spread(record_set.image_ids), found),
    )
    if dataset.notice:
        print(dataset.notice)
    if dataset.name == 'gland':
        is_papers = split == 'test' and not dataset.is_demo and record_set.num_examples == 80
        print(paper.format_table4(figures, paper=is_papers))
    else:
        print(paper.format_figures(figures))
    if split == config.task.validation_data.split and path.startswith(f'{model_dir}/best/'):
        print('These images chose the checkpoint; --checkpoint last is one that they did not.')
    print(f'{record_set.num_examples} images of {dataset.name}/{split}, {path}; wrote {folder}')
    return results


def _predict_checkpoint(config, dataset, split, path):
    """Detections, step of the training, records."""
    (record_set,) = experiment.prepare_records(config, dataset, [split])
    strategy = experiment.make_strategy(config)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        model = task.build_model()
        restore(model, path)
    found = predict(config, task, model, record_set, strategy)
    return found, int(train_utils.read_global_step_from_checkpoint(path)), record_set


def _predict_saved_model(config, dataset, split, path):
    """As `_predict_checkpoint`."""
    predictor = predictor_lib.load_saved_model(path)
    if predictor.about.class_names != tuple(dataset.class_names):
        raise UserError(
            f'--saved_model {path} knows {", ".join(predictor.about.class_names)}, but the classes '
            f'of {dataset.name} are {", ".join(dataset.class_names)}; give the data set of its '
            'training'
        )
    (record_set,) = experiment.prepare_records(config, dataset, [split])
    batch_size = config.task.validation_data.global_batch_size
    found = predictor_lib.predict_records(predictor, record_set, batch_size)
    return found, predictor.about.step, record_set


def predict(config, task, model, record_set, strategy) -> list:
    """Detections of every image, as COCO results at the images' own size."""
    params = config.task.validation_data
    experiment.use_records(params, record_set)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: task.build_inputs(params, context)
    )

    @tf.function
    def step(inputs):
        outputs = strategy.run(task.validation_step, args=(inputs, model))
        return tf.nest.map_structure(strategy.experimental_local_results, outputs)

    found = []
    with tqdm.tqdm(total=record_set.num_examples, desc='evaluate', unit='image') as bar:
        for inputs in dataset:
            outputs = step(inputs)
            task.aggregate_logs(found, outputs)
            ids = np.concatenate([np.asarray(x) for x in outputs['labels']['source_id']])
            bar.update(int((ids >= 0).sum()))
    return found


def restore(model, path: str) -> None:
    """Reads the weights of `model`; UserError where the checkpoint holds another network."""
    try:
        status = tf.train.Checkpoint(model=model).read(path).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'{path} holds another network than the settings describe '
            f'({str(error).splitlines()[0][:200]}); give the --config_file it was trained with'
        ) from error


def _spread(image_ids):
    """Up to `NUM_PICTURES` ids from the whole range, the same on every run."""
    places = np.linspace(0, len(image_ids) - 1, min(NUM_PICTURES, len(image_ids)))
    return [image_ids[int(round(place))] for place in places]


def take_saved_settings(options: argparse.Namespace) -> None:
    """Puts what a run was trained with into `options`, where these do not say otherwise.

    The settings, where its data were and how they were divided: with another division, images
    that were trained on would be among those of the validation split.

    Raises:
      UserError: `options.model_dir` is not the folder of a run, or `options.saved_model` that of an
        export, and there are no other settings.
    """
    saved_model = getattr(options, 'saved_model', None)
    if saved_model:
        path = predictor_lib.find_version(saved_model) / 'assets' / about_lib.PARAMS
    else:
        path = pathlib.Path(options.model_dir) / 'params.yaml'
    if not path.is_file():
        if options.config_file is not None:
            return
        raise UserError(
            f'--saved_model {saved_model} has no {path.name} among its assets'
            if saved_model
            else f'--model_dir {options.model_dir} has no params.yaml: not the folder of a run'
        )
    if options.config_file is None:
        options.config_file = str(path)
    saved = yaml.safe_load(path.read_text(encoding='utf-8'))['task']
    if saved['dataset'] != options.dataset:
        return
    for name in ('data_dir', *data_options.FLAGS):
        if not getattr(options, name, None):
            setattr(options, name, saved.get(name) or None)
