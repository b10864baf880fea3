# SPDX-License-Identifier: Apache-2.0
"""Operations that TensorFlow does not have, one package each."""

from custom_ops import keras_2  # noqa: F401  (before anything imports TensorFlow)
