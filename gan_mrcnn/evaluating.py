# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint, a SavedModel or a file of predictions on one split.

A checkpoint's predictions are written first and scored then, as those of any other system. Into
`MODEL_DIR/eval/SPLIT` go `predictions.json` (COCO results, with the data set's own category ids)
and its manifest, `results.json` (figures and all that made them) and `pictures.png` (image, truth
and prediction side by side).
"""

import argparse
import dataclasses
import pathlib
from typing import Optional

import numpy as np
import tensorflow as tf
from google.protobuf import message
from official.core import train_utils

from gan_mrcnn import bars, experiment, visualization, yaml_files
from gan_mrcnn import task as task_lib
from gan_mrcnn.datasets import base
from gan_mrcnn.datasets import options as data_options
from gan_mrcnn.errors import UserError
from gan_mrcnn.evaluation import coco, paper, pictures, predictions, report, scoring
from gan_mrcnn.serving import about as about_lib
from gan_mrcnn.serving import predictor as predictor_lib

NUM_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What to write: path of the results, folder of the HTML report; '' for none."""

    results: str = ''
    report: str = ''


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
        try:
            path = tf.train.latest_checkpoint(folder)
        except (ValueError, tf.errors.OpError) as error:
            raise UserError(
                f'{folder}/checkpoint is damaged; give the path of a file there by --checkpoint'
            ) from error
        if path:
            return path
    raise UserError(f'--model_dir {model_dir} holds no checkpoint; train first, or name another')


def evaluate(
    config,
    dataset: base.Dataset,
    split: str,
    model_dir: str,
    checkpoint: str,
    outputs: Optional[Outputs] = None,
    saved_model: Optional[str] = None,
) -> dict:
    """Evaluates one checkpoint, or what was exported from one, on one split.

    Args:
      config: the experiment.
      dataset: where `split` is.
      split: every image of it is evaluated.
      model_dir: of the run; results go below it.
      checkpoint: see `find_checkpoint`.
      outputs: what to write beside that.
      saved_model: folder of a SavedModel that `gan_mrcnn.serving.export` wrote, in place of the
        checkpoint.

    Returns:
      What `results.json` holds.
    """
    path = saved_model or find_checkpoint(model_dir, checkpoint)
    predictor = _load_saved_model(path, dataset) if saved_model else None
    validation_split = config.task.validation_data.split
    # Glands are painted into label maps from a score on, which the test images must not choose.
    wanted = [split]
    if dataset.name == 'gland' and split != validation_split:
        wanted.append(validation_split)
    record_sets = experiment.prepare_records(config, dataset, wanted)
    if predictor:
        batch_size = config.task.validation_data.global_batch_size
        found = [predictor_lib.predict_records(predictor, one, batch_size) for one in record_sets]
        step = predictor.about.step
    else:
        found, step = _predict_checkpoint(config, record_sets, path)
    threshold = scoring.DEFAULT_THRESHOLD
    if dataset.name == 'gland':
        threshold = scoring.threshold_from_validation(record_sets[-1], found[-1])

    folder = pathlib.Path(model_dir) / 'eval' / split
    own_ids = [
        {**prediction, 'category_id': dataset.category_ids[prediction['category_id'] - 1]}
        for prediction in found[0]
    ]
    origin = {'checkpoint': path, 'step': step, 'seed': config.task.seed}
    predictions.save_predictions(
        str(folder / 'predictions.json'),
        own_ids,
        {
            **scoring.manifest(dataset, split, record_sets[0]),
            **origin,
            'score_threshold': threshold,
        },
    )
    scored = scoring.score(dataset, split, record_sets[0], found[0], threshold)
    visualization.save_png(
        str(folder / 'pictures.png'),
        pictures.contact_sheet(record_sets[0], _spread(record_sets[0].image_ids), found[0]),
    )
    outputs = outputs or Outputs()
    results = _finish(
        scored,
        {**origin, 'config': config.as_dict()},
        dataclasses.replace(outputs, results=outputs.results or str(folder / 'results.json')),
    )
    if split == validation_split and path.startswith(f'{model_dir}/best/'):
        print('These images chose the checkpoint; --checkpoint last is one that they did not.')
    print(f'{record_sets[0].num_examples} images of {dataset.name}/{split}, {path}; wrote {folder}')
    return results


def evaluate_file(
    config,
    dataset: base.Dataset,
    split: str,
    path: str,
    validation_path: Optional[str],
    outputs: Outputs,
) -> dict:
    """Scores a file of predictions, of whatever system; no model is involved.

    Args:
      config: the experiment, of which only what concerns the data is looked at.
      dataset: where `split` is.
      split: what was predicted.
      path: of the predictions.
      validation_path: of those of the validation split, which choose from which score glands are
        painted; None for what the manifest says, or 0.5.
      outputs: what to write.

    Returns:
      What `results.json` would hold.

    Raises:
      UserError: a file cannot be scored; nothing has been printed or written then.
    """
    record_set, found, manifest = _read_file(config, dataset, path, split)
    threshold = manifest.get('score_threshold', scoring.DEFAULT_THRESHOLD)
    if validation_path:
        validation_split = config.task.validation_data.split
        validation_set, validation, _ = _read_file(
            config, dataset, validation_path, validation_split
        )
        threshold = scoring.threshold_from_validation(validation_set, validation)
    scored = scoring.score(dataset, split, record_set, found, threshold)
    origin = {key: manifest.get(key) for key in ('checkpoint', 'step', 'seed')}
    results = _finish(scored, {**origin, 'config': None, 'predictions': path}, outputs)
    print(f'{record_set.num_examples} images of {dataset.name}/{split}, {path}')
    return results


def _read_file(config, dataset, path, split):
    """The records of a split, predictions for it from a file, and their manifest."""
    manifest = predictions.load_manifest(path)
    (record_set,) = experiment.prepare_records(config, dataset, [split])
    predictions.check_manifest(path, manifest, scoring.manifest(dataset, split, record_set))
    truth = coco.load_annotations(record_set.annotation_file)
    return record_set, predictions.load_predictions(path, truth, dataset.category_ids), manifest


def _finish(scored: scoring.Scored, origin: dict, outputs: Outputs) -> dict:
    """Writes and prints what was found out."""
    results = {
        'figures': scored.figures,
        'dataset': scored.dataset.name,
        'split': scored.split,
        'num_images': scored.record_set.num_examples,
        'notice': scored.dataset.notice,
        'data_fingerprint': scored.record_set.fingerprint,
        **origin,
    }
    if outputs.results:
        results = paper.write_results(outputs.results, results)
    if outputs.report:
        print(f'report: {report.write(scored, results, outputs.report)}')
    if scored.dataset.notice:
        print(scored.dataset.notice)
    print(scoring.format_text(scored))
    return results


def _make_step(strategy, task, model):
    @tf.function
    def step(inputs):
        outputs = strategy.run(task.validation_step, args=(inputs, model))
        return tf.nest.map_structure(strategy.experimental_local_results, outputs)

    return step


def _predict_checkpoint(config, record_sets, path):
    """Detections of each of the record sets, and the step of the training."""
    strategy = experiment.make_strategy(config)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        model = task.build_model()
        restore(model, path)
    step = _make_step(strategy, task, model)
    found = [predict(config, task, step, one, strategy) for one in record_sets]
    return found, int(train_utils.read_global_step_from_checkpoint(path))


def _load_saved_model(path, dataset):
    """What was exported, if it knows the classes of `dataset`."""
    predictor = predictor_lib.load_saved_model(path)
    if predictor.about.class_names != tuple(dataset.class_names):
        raise UserError(
            f'--saved_model {path} knows {", ".join(predictor.about.class_names)}, but the classes '
            f'of {dataset.name} are {", ".join(dataset.class_names)}; give the data set of its '
            'training'
        )
    return predictor


def predict(config, task, step, record_set, strategy) -> list:
    """Detections of every image, as COCO results at the images' own size, batch by batch."""
    params = config.task.validation_data
    experiment.use_records(params, record_set)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: task.build_inputs(params, context)
    )

    found = []
    with bars.Bar(total=record_set.num_examples, desc='predict', unit='image') as bar:
        for inputs in dataset:
            outputs = step(inputs)
            task.aggregate_logs(found, outputs)
            ids = np.concatenate([np.asarray(x) for x in outputs['labels']['source_id']])
            bar.update(int((ids >= 0).sum()))
    return found


def restore(model, path: str, **others) -> None:
    """Reads the weights of `model`, and of `others` by their names in the checkpoint.

    Raises:
      UserError: the checkpoint holds another network, or cannot be read.
    """
    try:
        status = tf.train.Checkpoint(model=model, **others).read(path).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, ValueError) as error:
        raise UserError(
            f'{path} holds another network than the settings describe '
            f'({" ".join(str(error).split())[:200]}); give the --config_file it was trained with'
        ) from error
    except (tf.errors.OpError, message.Error, UnicodeError, LookupError, TypeError) as error:
        raise UserError(
            f'{path} is damaged ({" ".join(str(error).split())[:200]}); give another --checkpoint'
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
    saved = yaml_files.read_task(path)
    if saved['dataset'] != options.dataset:
        return
    for name in ('data_dir', *data_options.FLAGS):
        if not getattr(options, name, None):
            setattr(options, name, saved.get(name) or None)
