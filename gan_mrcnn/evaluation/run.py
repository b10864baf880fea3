# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint, a SavedModel or a file of predictions on one split.

A checkpoint's predictions are written first and scored then, as those of any other system. Into
`MODEL_DIR/eval/SPLIT` go `predictions.json` (COCO results, with the data set's own category ids)
and its manifest, `results.json` (figures and all that made them) and `pictures.png` (image, truth
and prediction side by side).
"""

import dataclasses
import pathlib
from typing import Optional

import numpy as np
import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import paper, scoring
from gan_mrcnn.evaluation.report import page as report_page
from gan_mrcnn.metrics import coco, predictions
from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import contact_sheet
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import devices, progress_bar, visualization
from gan_mrcnn.utils.errors import UserError

NUM_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What to write: path of the results, folder of the HTML report; '' for none."""

    results: str = ''
    report: str = ''


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
      checkpoint: see `prediction.checkpoint.find_checkpoint`.
      outputs: what to write beside that.
      saved_model: folder of a SavedModel that `gan_mrcnn.serving.export` wrote, in place of the
        checkpoint.

    Returns:
      What `results.json` holds.
    """
    path = saved_model or checkpoint_lib.find_checkpoint(model_dir, checkpoint)
    predictor = _load_saved_model(path, dataset) if saved_model else None
    validation_split = config.task.validation_data.split
    # Glands are painted into label maps from a score on, which the test images must not choose.
    wanted = [split]
    if dataset.name == 'gland' and split != validation_split:
        wanted.append(validation_split)
    record_sets = records.ensure_splits(dataset, wanted, config.task)
    if predictor:
        batch_size = config.task.validation_data.global_batch_size
        found = [predictor_lib.predict_records(predictor, one, batch_size) for one in record_sets]
        step = predictor.card.step
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
        contact_sheet.contact_sheet(record_sets[0], _spread(record_sets[0].image_ids), found[0]),
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
    (record_set,) = records.ensure_splits(dataset, [split], config.task)
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
        print(f'report: {report_page.write(scored, results, outputs.report)}')
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
    devices.set_up(config.runtime.mixed_precision_dtype, config.task.deterministic)
    strategy = devices.mirrored_strategy()
    devices.check_batch(strategy, config.task.train_data.global_batch_size)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        model = task.build_model()
        checkpoint_lib.restore(model, path)
    step = _make_step(strategy, task, model)
    found = [predict(config, task, step, one, strategy) for one in record_sets]
    return found, checkpoint_lib.step_of(path)


def _load_saved_model(path, dataset):
    """What was exported, if it knows the classes of `dataset`."""
    predictor = predictor_lib.load_saved_model(path)
    if predictor.card.class_names != tuple(dataset.class_names):
        raise UserError(
            f'--saved_model {path} knows {", ".join(predictor.card.class_names)}, but the classes '
            f'of {dataset.name} are {", ".join(dataset.class_names)}; give the data set of its '
            'training'
        )
    return predictor


def predict(config, task, step, record_set, strategy) -> list:
    """Detections of every image, as COCO results at the images' own size, batch by batch."""
    params = config.task.validation_data
    record_set.feed(params)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: task.build_inputs(params, context)
    )

    found = []
    with progress_bar.Bar(total=record_set.num_examples, desc='predict', unit='image') as bar:
        for inputs in dataset:
            outputs = step(inputs)
            task.aggregate_logs(found, outputs)
            ids = np.concatenate([np.asarray(x) for x in outputs['labels']['source_id']])
            bar.update(int((ids >= 0).sum()))
    return found


def _spread(image_ids):
    """Up to `NUM_PICTURES` ids from the whole range, the same on every run."""
    places = np.linspace(0, len(image_ids) - 1, min(NUM_PICTURES, len(image_ids)))
    return [image_ids[int(round(place))] for place in places]
