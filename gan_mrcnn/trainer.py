# SPDX-License-Identifier: Apache-2.0
"""The Model Garden's trainer with a second optimizer, and the loop around it.

One checkpoint holds both networks, both optimizers and the step. The best checkpoint by mask AP on
the validation split is kept apart.
"""

import sys
import time

import orbit
import tensorflow as tf
import tqdm
from official.core import base_trainer, config_definitions, train_utils

from gan_mrcnn import task as task_lib


class Trainer(base_trainer.Trainer):
    """Trains generator and discriminators with one optimizer each."""

    def __init__(self, config, task: task_lib.GanMaskRCNNTask, model, optimizer, **kwargs):
        items = {}
        if task.has_discriminators:
            task.build_discriminators(discriminator_optimizer(config, task))
            items = {
                'box_discriminator': task.box_discriminator,
                'mask_discriminator': task.mask_discriminator,
                'discriminator_optimizer': task.discriminator_optimizer,
            }
        # Slots made within the first step would not be there when a checkpoint is restored.
        optimizer.build(model.trainable_variables)
        super().__init__(config, task, model, optimizer, **kwargs)
        self._checkpoint = tf.train.Checkpoint(
            global_step=self.global_step,
            model=model,
            optimizer=optimizer,
            **model.checkpoint_items,
            **items,
        )

    def train_loop_end(self):
        logs = super().train_loop_end()
        optimizer = self.task.discriminator_optimizer
        if optimizer is not None:
            logs['discriminator_learning_rate'] = optimizer.learning_rate
        return logs


def discriminator_optimizer(config, task) -> tf.keras.optimizers.Optimizer:
    """SGD on the generator's schedule, times `gan.learning_rate_ratio`."""
    params = config.trainer.optimizer_config.as_dict()
    ratio = config.task.gan.learning_rate_ratio
    rates = params['learning_rate'][params['learning_rate']['type']]
    if 'values' in rates:
        rates['values'] = [ratio * value for value in rates['values']]
    else:
        rates['learning_rate'] *= ratio
    if params['warmup']['type'] == 'linear':
        params['warmup']['linear']['warmup_learning_rate'] *= ratio
    return task.create_optimizer(type(config.trainer.optimizer_config)(params), config.runtime)


class ProgressBar:
    """A bar with ETA, time per step, images per second, loss and validation AP."""

    def __init__(self, config: config_definitions.ExperimentConfig, step: int):
        self._batch_size = config.task.train_data.global_batch_size
        self._figures = {}
        self._last = None
        self._bar = tqdm.tqdm(
            total=config.trainer.train_steps,
            initial=step,
            unit='step',
            desc='train',
            dynamic_ncols=True,
        )

    def update(self, output: orbit.runner.Output) -> None:
        """An orbit train action."""
        now, step = time.monotonic(), _current_step()
        self._figures['loss'] = f'{float(output["total_loss"]):.3f}'
        if self._last:
            seconds = (now - self._last[0]) / (step - self._last[1])
            self._figures['s/step'] = f'{seconds:.2f}'
            self._figures['img/s'] = f'{self._batch_size / seconds:.1f}'
        self._last = (now, step)
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update(step - self._bar.n)

    def evaluated(self, output: orbit.runner.Output) -> None:
        """An orbit evaluation action; leaves evaluation out of the time per step."""
        self._last = None
        figures = ', '.join(
            f'{kind} AP {float(output[f"{kind}_AP"]):.3f}' for kind in ('box', 'mask')
        )
        self._figures['val'] = figures
        # Beside the bar: standard output is orbit's during a run.
        self._bar.write(f'step {_current_step()}: validation {figures}', file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


def _current_step() -> int:
    """The global step, which orbit makes the summaries' step."""
    return int(tf.summary.experimental.get_step().numpy())


def make_trainer(config, task, train: bool, evaluate: bool, model_dir: str) -> Trainer:
    """Builds networks, optimizers and inputs; call it inside the strategy's scope."""
    model = task.build_model()
    optimizer = train_utils.create_optimizer(task, config)
    exporter = train_utils.maybe_create_best_ckpt_exporter(config, model_dir) if train else None
    return Trainer(
        config,
        task,
        model,
        optimizer,
        train=train,
        evaluate=evaluate,
        checkpoint_exporter=exporter,
    )
