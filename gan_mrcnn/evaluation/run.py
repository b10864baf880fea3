# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a checkpoint, a SavedModel or a file of predictions on one split.

A checkpoint's predictions are written first and then scored like those of any other system. Into
`MODEL_DIR/eval/SPLIT` go `predictions.json` (COCO results, with the data set's own category ids)
and its manifest, `results.json` (figures and their origin) and `images.png` (image, ground truth
and predictions side by side).
"""

import dataclasses
import functools
import pathlib
from typing import Optional

import numpy as np
import tensorflow as tf

from gan_mrcnn import task as task_lib
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from gan_mrcnn.evaluation import paper, scoring
from gan_mrcnn.evaluation.report import page as report_page
from gan_mrcnn.metrics import coco, collector, predictions
from gan_mrcnn.modeling import weights_file
from gan_mrcnn.prediction import checkpoint as checkpoint_lib
from gan_mrcnn.prediction import contact_sheet, exported, model_card
from gan_mrcnn.prediction import predictor as predictor_lib
from gan_mrcnn.utils import devices, disk, progress_bar, visualization
from gan_mrcnn.utils.errors import UserError

# Of `images.png`.
_NUM_IMAGES = 6


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
    weights: Optional[str] = None,
    augmentation: Optional[str] = None,
) -> dict:
    """Evaluates one checkpoint, or what was exported from one, on one split.

    Args:
      config: the experiment.
      dataset: where `split` is.
      split: every image of it is evaluated.
      model_dir: of the run; results go below it.
      checkpoint: see `prediction.checkpoint.find_checkpoint`.
      outputs: what to write beside that.
      saved_model: what was exported, see `exported.load`, in place of the checkpoint.
      weights: path of published weights, in place of the checkpoint.
      augmentation: a key of `tta.ORIENTATIONS`, for results in a folder of their own; None for
        images as they are.

    Returns:
      What `results.json` holds.
    """
    path = saved_model or weights or checkpoint_lib.find_checkpoint(model_dir, checkpoint)
    predictor = _load_saved_model(path, augmentation) if saved_model else None
    card = predictor.card if predictor else _published_card(weights) if weights else None
    if card:
        flag = '--saved_model' if saved_model else '--weights'
        _check_classes(card, dataset, f'{flag} {path}')
    is_gland = dataset.name == 'gland'
    validation_split = config.task.validation_data.split
    # Glands are painted into label maps from a score on, which the test images must not choose.
    splits = [split, validation_split] if is_gland and split != validation_split else [split]
    record_sets = records.ensure_splits(dataset, splits, config.task)
    outputs = outputs or Outputs()
    name = f'{split}-tta-{augmentation}' if augmentation else split
    folder = pathlib.Path(model_dir) / 'eval' / name
    disk.check_folder(folder, '--model_dir')
    _check_outputs(outputs)
    make = checkpoint_lib.published_model if weights else checkpoint_lib.restored_model
    make_model = functools.partial(make, path=path)
    if augmentation and not predictor:
        card = card or checkpoint_lib.make_card(config.task, dataset, path)
        predictor = _load_augmented(config, card, make_model, augmentation)
    if predictor:
        detections = _predict_saved_model(config, record_sets, predictor)
    else:
        detections = _predict_checkpoint(config, record_sets, make_model)
    threshold = scoring.DEFAULT_THRESHOLD
    if is_gland:
        threshold = scoring.threshold_from_validation(record_sets[-1], detections[-1])
    origin = {
        'checkpoint': path,
        'step': card.step if card else checkpoint_lib.step_of(path),
        'seed': config.task.seed,
        'tta': augmentation,
    }
    most = config.task.model.detection_generator.max_num_detections
    made_by = {**origin, 'score_threshold': threshold, 'max_num_detections': most}
    with disk.errors_named(folder):
        _save(folder, dataset, split, record_sets[0], detections[0], made_by)
    scored = scoring.score(dataset, split, record_sets[0], detections[0], threshold, most)
    outputs = dataclasses.replace(outputs, results=outputs.results or str(folder / 'results.json'))
    results = _finish(scored, {**origin, 'config': config.as_dict()}, outputs)
    if split == validation_split and path.startswith(f'{model_dir}/best/'):
        print('These images chose the checkpoint; --checkpoint last gives one they did not choose.')
    print(f'{record_sets[0].num_examples} images of {dataset.name}/{split}, {path}; wrote {folder}')
    return results


def _check_outputs(outputs: Outputs) -> None:
    """Raises UserError before the work where its results cannot be written."""
    if outputs.results:
        disk.check_file(outputs.results, '--results')
    if outputs.report:
        disk.check_folder(outputs.report, '--report')


def _save(folder, dataset, split, record_set, detections, made_by) -> None:
    """Writes predictions, with the data set's own category ids, and `images.png`."""
    manifest = {**scoring.manifest(dataset, split, record_set), **made_by}
    own_ids = [
        {**one, 'category_id': dataset.category_ids[one['category_id'] - 1]} for one in detections
    ]
    predictions.save_predictions(str(folder / 'predictions.json'), own_ids, manifest)
    ids = _spread(record_set.image_ids)
    sheet = contact_sheet.contact_sheet(record_set, ids, detections)
    visualization.save_png(str(folder / 'images.png'), sheet)


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
      config: the experiment, of which only the data's part is read.
      dataset: where `split` is.
      split: what was predicted.
      path: of the predictions.
      validation_path: of those of the validation split, which choose from which score on glands
        are painted; None for the manifest's score, or 0.5.
      outputs: what to write.

    Returns:
      What `results.json` would hold.

    Raises:
      UserError: a file cannot be scored, or the results cannot be written; nothing has been
        printed or written then.
    """
    record_set, detections, manifest = _read_file(config, dataset, path, split)
    threshold = manifest.get('score_threshold', scoring.DEFAULT_THRESHOLD)
    if validation_path:
        validation_split = config.task.validation_data.split
        validation_set, validation, _ = _read_file(
            config, dataset, validation_path, validation_split
        )
        threshold = scoring.threshold_from_validation(validation_set, validation)
    _check_outputs(outputs)
    most = manifest.get('max_num_detections')
    scored = scoring.score(dataset, split, record_set, detections, threshold, most)
    origin = {key: manifest.get(key) for key in ('checkpoint', 'step', 'seed')}
    results = _finish(scored, {**origin, 'config': None, 'predictions': path}, outputs)
    print(f'{record_set.num_examples} images of {dataset.name}/{split}, {path}')
    return results


def _read_file(config, dataset, path, split):
    """The records of a split, predictions for it from a file, and their manifest."""
    manifest = predictions.load_manifest(path)
    (record_set,) = records.ensure_splits(dataset, [split], config.task)
    predictions.check_manifest(path, manifest, scoring.manifest(dataset, split, record_set))
    ground_truth = coco.load_annotations(record_set.annotation_file)
    detections = predictions.load_predictions(path, ground_truth, dataset.category_ids)
    return record_set, detections, manifest


def _finish(scored: scoring.Scored, origin: dict, outputs: Outputs) -> dict:
    """Writes and prints the results."""
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
        with disk.errors_named(f'--results {outputs.results}'):
            results = paper.write_results(outputs.results, results)
    if outputs.report:
        with disk.errors_named(f'--report {outputs.report}'):
            path = report_page.write(scored, results, outputs.report)
        print(f'report: {path}')
    if scored.dataset.notice:
        print(scored.dataset.notice)
    print(scoring.format_text(scored))
    return results


def _predict_saved_model(config, record_sets, predictor) -> list[list]:
    """Detections of each of the record sets."""
    batch_size = config.task.validation_data.global_batch_size
    return [predictor_lib.predict_records(predictor, one, batch_size) for one in record_sets]


def _predict_checkpoint(config, record_sets, make_model) -> list[list]:
    """Detections of each of the record sets; `make_model` gives a task's with its weights."""
    devices.set_up(config.runtime.mixed_precision_dtype, config.task.deterministic)
    strategy = devices.mirrored_strategy(config.runtime.all_reduce_alg)
    batch_size = config.task.validation_data.global_batch_size
    devices.check_batch(strategy, batch_size, 'validation_data')
    print(f'devices: {devices.describe(strategy.num_replicas_in_sync)}', flush=True)
    with strategy.scope():
        task = task_lib.GanMaskRCNNTask(config.task)
        model = make_model(task)

    step = make_step(strategy, task, model)
    return [predict(config, task, step, one, strategy) for one in record_sets]


def make_step(strategy, task, model):
    """A function of one distributed batch: `task.validation_step` of each replica."""

    @tf.function
    def step(inputs):
        outputs = strategy.run(task.validation_step, args=(inputs, model))
        return tf.nest.map_structure(strategy.experimental_local_results, outputs)

    return step


def _published_card(path: str) -> model_card.ModelCard:
    return model_card.from_values(weights_file.read_notes(path)['card'], path)


def _load_augmented(config, card, make_model, augmentation: str):
    """A predictor of what `make_model` gives, with its weights; one device, in float32."""
    devices.prepare_gpus()
    print(f'devices: {devices.describe()}', flush=True)
    task = task_lib.GanMaskRCNNTask(config.task)
    opened = checkpoint_lib.Opened(
        make_model(task), card, config, box_discriminator=task.box_discriminator
    )
    return opened.predictor(augmentation)


def _load_saved_model(path, augmentation: Optional[str]):
    """A predictor of the exported model."""
    devices.prepare_gpus()
    predictor = exported.load(path, augmentation)
    print(f'devices: {devices.describe()}', flush=True)
    return predictor


def _check_classes(card: model_card.ModelCard, dataset: base.Dataset, model: str) -> None:
    """Raises UserError where a model has other classes than `dataset`; `model` names it."""
    if card.class_names != tuple(dataset.class_names):
        raise UserError(
            f'{model} knows {", ".join(card.class_names)}, but the classes of {dataset.name} are '
            f'{", ".join(dataset.class_names)}; give the data set that it was trained on'
        )


def predict(config, task, step, record_set, strategy) -> list:
    """Detections of every image, as COCO results at the images' own size, batch by batch."""
    params = config.task.validation_data
    record_set.feed(params)
    dataset = strategy.distribute_datasets_from_function(
        lambda context: task.build_inputs(params, context)
    )

    with (
        progress_bar.Bar(total=record_set.num_examples, desc='predict', unit='image') as bar,
        collector.Collector(bar.update) as found,
    ):
        for inputs in dataset:
            task.aggregate_logs(found, step(inputs))
        return found.results()


def _spread(image_ids):
    """Up to `_NUM_IMAGES` ids from the whole range, the same on every run."""
    places = np.linspace(0, len(image_ids) - 1, min(_NUM_IMAGES, len(image_ids)))
    return [image_ids[int(round(place))] for place in places]
