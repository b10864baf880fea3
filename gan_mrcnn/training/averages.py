# SPDX-License-Identifier: Apache-2.0
"""The exponential moving average of the generator's weights, which validation and users get.

`trainer.optimizer_config.ema` is the Model Garden's section and means what it means there. Its
optimizer is not used: it wraps Keras' legacy optimizers only, it swaps weights by sums and
differences that do not give the same bits back, so that a resumed run would be another, and it
knows no step that is left out. Keras' own `use_ema` has no BatchNorm statistics.

The averages are the weights of a second generator. Nothing is swapped: training has its own
weights, validation the other network's, and a checkpoint both.
"""

import tensorflow as tf
from official.modeling import optimization


class AveragedModel:
    """Holds the averages of a model's variables in another one that is made alike."""

    def __init__(
        self,
        config: optimization.EMAConfig,
        model: tf.keras.Model,
        averaged_model: tf.keras.Model,
    ):
        """Changes nothing yet; see `start`."""
        self._config = config
        self._model = model
        self.model = averaged_model

    def start(self) -> None:
        """Takes over the model's variables as they are; call it where no step has been done."""
        for average, variable in zip(self.model.variables, self._model.variables):
            average.assign(variable)

    def update(self, step: tf.Tensor, applies: tf.Tensor) -> None:
        """Moves the averages towards the variables; call it across replicas, after each step.

        Args:
          step: scalar int, of steps done.
          applies: scalar bool, False for a step that is left out.
        """
        strategy = tf.distribute.get_strategy()
        share = tf.where(applies, 1.0 - self.decay(step), 0.0)
        trained = {id(variable) for variable in self._model.trainable_variables}
        for average, variable in zip(self.model.variables, self._model.variables):
            is_averaged = id(variable) in trained or not self._config.trainable_weights_only
            move = _move if is_averaged else _copy
            strategy.extended.update(average, move, args=(variable, share), group=False)

    def decay(self, step: tf.Tensor) -> tf.Tensor:
        """What the averages keep of themselves in the step that was the `step`th.

        Nothing before `start_step`. From there on `average_decay` or, where `dynamic_decay` is on,
        less at first: (1 + n) / (10 + n) after n steps, so that the first weights are soon
        forgotten.
        """
        config = self._config
        counted = tf.cast(step, tf.float32) - config.start_step
        decay = tf.constant(config.average_decay)
        if config.dynamic_decay:
            decay = tf.minimum(decay, (1.0 + counted) / (10.0 + counted))
        return tf.where(counted < 0.0, 0.0, decay)


def _move(average, variable, share):
    # What does not change is its own average to the last bit.
    average.assign_sub(share * (average - variable))


def _copy(average, variable, share):
    del share
    average.assign(variable)
