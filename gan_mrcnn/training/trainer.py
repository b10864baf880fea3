# SPDX-License-Identifier: Apache-2.0
"""The Model Garden's trainer with a second optimizer, and what is checked after every step.

One checkpoint holds both networks, both optimizers, the step, and the averages of the weights where
there are some.
"""

import copy
from typing import Any, Callable, Optional

import tensorflow as tf
from official.core import base_trainer, train_utils

from gan_mrcnn import settings
from gan_mrcnn import task as task_lib
from gan_mrcnn.data.records import records
from gan_mrcnn.prediction import contact_sheet
from gan_mrcnn.training import averages, checkpoints, preemption

# Validation images that TensorBoard shows.
NUM_IMAGES = 4


class Trainer(base_trainer.Trainer):
    """Trains generator and discriminators with one optimizer each."""

    def __init__(
        self,
        config,
        task: task_lib.GanMaskRCNNTask,
        model,
        optimizer,
        stop: preemption.Stop,
        validation_records: Optional[records.RecordSet],
        **kwargs,
    ):
        """Makes the optimizers' slots and the checkpoint.

        Args:
          config: the experiment.
          task: see there; it gets its discriminators here.
          model: the generator.
          optimizer: the generator's.
          stop: asked after every step whether it was the last.
          validation_records: of the images that a validation draws; None draws none.
          **kwargs: the parent's.
        """
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
        self._averaged = None
        ema = config.trainer.optimizer_config.ema
        if ema is not None:
            # The last of the networks, so that the others start as they would without.
            self._averaged = averages.AveragedModel(ema, model, task.build_model())
            items['averaged_model'] = self._averaged.model
        super().__init__(config, task, model, optimizer, **kwargs)
        self._stop = stop
        self._validation_records = validation_records
        # Called with the inputs and the terms of a step that is not finite.
        self.on_nonfinite: Callable[[Any, dict[str, float]], None] = lambda inputs, terms: None
        self._checkpoint = tf.train.Checkpoint(
            global_step=self.global_step,
            model=model,
            optimizer=optimizer,
            **model.checkpoint_items,
            **items,
        )

    def initialize(self):
        """Loads the backbone and starts the averages; called where there is no checkpoint yet."""
        super().initialize()
        if self._averaged:
            self._averaged.start()

    def create_train_loop_fn(self):
        """One step at a time, so that a signal or a non-finite step need not wait.

        Raises (the loop): KeyboardInterrupt after the step in which a signal came, on every worker
        alike, and whatever `on_nonfinite` raises.
        """
        step = tf.function(self.train_step)

        def loop(iterator, num_steps):
            for _ in range(int(num_steps)):
                # Not within the function, which is traced once for each canvas that comes: there
                # the shapes of what an iterator gives would have to be all the same.
                inputs = self.next_train_inputs(iterator)
                outcome = step(inputs, tf.constant(self._stop.wanted is not None))
                # The first step took its time to be traced; until then a signal breaks it off.
                self._stop.hold()
                local = tf.nest.map_structure(self.strategy.experimental_local_results, outcome)
                if not local['finite'][0]:
                    self.on_nonfinite(self._join(inputs), self._mean(outcome['terms']))
                if local['stop'][0]:
                    raise KeyboardInterrupt

        return loop

    def train_step(self, inputs, stop: tf.Tensor):
        """One step on every replica.

        Args:
          inputs: of each replica, see `GanMaskRCNNTask.train_step`.
          stop: scalar bool, whether this worker's run is to end.

        Returns:
          `finite` and `terms` of `GanMaskRCNNTask.train_step` with `stop`, whether any worker's run
          is to end, each by replica.
        """

        def step_on_replica(inputs, stop):
            logs = self.task.train_step(inputs, self.model, self.optimizer, self.train_metrics)
            self.global_step.assign_add(1)
            replicas = tf.distribute.get_replica_context()
            stops = replicas.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(stop, tf.float32))
            return {'finite': logs['finite'], 'terms': logs['terms'], 'stop': stops > 0}

        outcome = self.strategy.run(step_on_replica, args=(inputs, stop))
        if self._averaged:
            finite = self.strategy.experimental_local_results(outcome['finite'])[0]
            self._averaged.update(self.global_step, finite)
        return outcome

    def _join(self, inputs) -> Any:
        """This worker's inputs of all its replicas as one batch."""
        local = lambda x: tf.concat(self.strategy.experimental_local_results(x), 0)  # noqa: E731
        return tf.nest.map_structure(local, inputs)

    def _mean(self, terms) -> dict[str, float]:
        """Replicas hold shares whose mean is the whole; see `gan_mrcnn.losses`."""
        return {
            name: float(self.strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None))
            for name, value in terms.items()
        }

    def eval_step(self, iterator):
        """One batch on every replica of every worker; each worker gets all detections.

        By the averages of the weights where there are some.
        """
        model = self._averaged.model if self._averaged else self.model

        def step_on_replica(inputs):
            return self.task.validation_step(inputs, model)

        outputs = self.strategy.run(step_on_replica, args=(next(iterator),))
        return tf.nest.map_structure(lambda x: [self.strategy.gather(x, axis=0)], outputs)

    def eval_end(self, aggregated_logs=None) -> dict[str, Any]:
        """Figures of a validation; the parent takes one without any detection for none at all."""
        predictions = aggregated_logs.results() if aggregated_logs else []
        self._draw(predictions)
        logs = self.task.reduce_aggregated_logs(predictions, self.global_step)
        best = self.checkpoint_exporter
        best.add(self.checkpoint, logs, int(self.global_step.numpy()))
        return {**logs, **{f'best_{name}': value for name, value in best.best_figure().items()}}

    def _draw(self, predictions: list[dict[str, Any]]) -> None:
        """Shows the first validation images in TensorBoard."""
        if self._validation_records:
            chosen = self._validation_records.image_ids[:NUM_IMAGES]
            sheet = contact_sheet.contact_sheet(self._validation_records, chosen, predictions)
            tf.summary.image('image_ground_truth_prediction', sheet[tf.newaxis])

    def train_loop_end(self):
        logs = super().train_loop_end()
        # The parent's name for what `total_loss` is.
        del logs[self.train_loss.name]
        optimizer = self.task.discriminator_optimizer
        if optimizer is not None:
            logs['discriminator_learning_rate'] = optimizer.learning_rate
        return logs


def discriminator_optimizer(config, task) -> tf.keras.optimizers.Optimizer:
    """Of the generator's kind and on its schedule, times `gan.learning_rate_ratio`."""
    scaled = copy.deepcopy(config)
    settings.scale_rates(scaled, config.task.gan.learning_rate_ratio)
    return task.create_optimizer(scaled.trainer.optimizer_config, config.runtime)


def make_trainer(
    config,
    task: task_lib.GanMaskRCNNTask,
    evaluate: bool,
    best: checkpoints.BestCheckpoint,
    stop: preemption.Stop,
    validation_records: Optional[records.RecordSet] = None,
) -> Trainer:
    """Builds networks, optimizers and inputs; call it inside the strategy's scope."""
    model = task.build_model()
    optimizer = train_utils.create_optimizer(task, config)
    return Trainer(
        config,
        task,
        model,
        optimizer,
        stop=stop,
        validation_records=validation_records,
        evaluate=evaluate,
        checkpoint_exporter=best,
    )
