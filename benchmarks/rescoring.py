# SPDX-License-Identifier: Apache-2.0
"""AP by how much the box discriminator's opinion counts, to choose `task.gan.rescore_exponent`.

    python benchmarks/rescoring.py RUN [--checkpoint last] [--split val]

The run's network sees the split once; opinions are kept by detection, and a row of the table is the
same detections with another score: score * opinion**exponent. The exponent is to be chosen on the
validation split; the test images choose nothing.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import _runs  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from gan_mrcnn.metrics import coco, collector  # noqa: E402
from gan_mrcnn.modeling import rescoring  # noqa: E402
from gan_mrcnn.prediction import checkpoint  # noqa: E402

EXPONENTS = (0.0, 0.25, 0.5, 1.0, 2.0)
COLUMNS = [(kind, name) for kind in ('box', 'mask') for name in ('AP', 'AP50', 'AP75')]


def detect_with_opinions(task, model, batches):
    """COCO results with the class's score, and the opinion of each of them.

    Args:
      task: with its box discriminator; `rescore_exponent` is not looked at.
      model: the generator.
      batches: images and labels, as `GanMaskRCNNTask.build_inputs` gives them.
    """

    @tf.function
    def step(images, labels):
        outputs = rescoring.detect(model, images, labels['image_info'][:, 1])
        opinions = rescoring.opinions(
            task.box_discriminator, outputs['decoder_features'], outputs['detection_boxes']
        )
        names = ('boxes', 'scores', 'classes', 'masks')
        return {name: outputs[f'detection_{name}'] for name in names}, opinions

    with collector.Collector() as found, collector.Collector() as judged:
        for images, labels in batches:
            detections, opinions = step(images, labels)
            # Rows without a score are padding, whatever is said of them, and the others are not.
            opinions = tf.where(detections['scores'] > 0, tf.maximum(opinions, 1e-30), 0.0)
            for scores, state in ((detections['scores'], found), (opinions, judged)):
                outputs = {'detections': {**detections, 'scores': scores}, 'labels': labels}
                task.aggregate_logs(state, tf.nest.map_structure(lambda x: [x], outputs))
        results = found.results()
        return results, np.array([one['score'] for one in judged.results()])


def table(annotation_file, results, opinions, exponents=EXPONENTS):
    """Figures of `COLUMNS` by exponent."""
    rows = {}
    for exponent in exponents:
        rescored = [
            {**one, 'score': one['score'] * opinion**exponent}
            for one, opinion in zip(results, opinions)
        ]
        figures = coco.evaluate_coco(annotation_file, rescored)
        rows[exponent] = [figures[kind][name] for kind, name in COLUMNS]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', help='--model_dir of the run')
    parser.add_argument('--checkpoint', default='best')
    parser.add_argument('--split', default='val')
    flags = parser.parse_args()
    task = _runs.saved_task(flags.run)
    model = task.build_model()
    task.build_box_discriminator()
    path = checkpoint.find_checkpoint(flags.run, flags.checkpoint)
    checkpoint.restore(model, path, box_discriminator=task.box_discriminator)
    params = task.task_config.validation_data
    record_set, batches = _runs.split_inputs(task, params, flags.split)
    results, opinions = detect_with_opinions(task, model, batches)
    print(
        f'{len(results)} detections on {flags.split}, opinions {np.mean(opinions):.3f} on average'
    )
    print(f'| exponent | {" | ".join(" ".join(column) for column in COLUMNS)} |')
    print('|---' * (1 + len(COLUMNS)) + '|')
    for exponent, row in table(record_set.annotation_file, results, opinions).items():
        print(f'| {exponent:g} | {" | ".join(f"{x:.4f}" for x in row)} |')


if __name__ == '__main__':
    main()
