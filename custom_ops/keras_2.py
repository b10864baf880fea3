# SPDX-License-Identifier: Apache-2.0
"""Makes `tf.keras` Keras 2, whichever TensorFlow is installed. Imports nothing heavy.

TensorFlow 2.15 has Keras 2 there. Later ones have Keras 3; Keras 2 goes on as `tf_keras`, and
`tf.keras` is that where TF_USE_LEGACY_KERAS says so. Both packages import this module before all
else, so that it is said in time whatever is imported first.
"""

import importlib.metadata
import os
import sys


def _has_keras_3() -> bool:
    try:
        return int(importlib.metadata.version('keras').partition('.')[0]) >= 3
    except importlib.metadata.PackageNotFoundError:
        return False


def _choose() -> None:
    """Asks for Keras 2.

    Raises:
      ImportError: this process uses Keras 3 as `tf.keras` already.
    """
    os.environ['TF_USE_LEGACY_KERAS'] = '1'
    tensorflow = sys.modules.get('tensorflow')
    # TensorFlow reads the variable when `tf.keras` is used for the first time. Only Keras 3 has
    # `ops`.
    if tensorflow and hasattr(tensorflow.keras, 'ops'):
        raise ImportError(
            'gan_mrcnn needs Keras 2, but tf.keras is Keras 3 in this process already; import '
            'gan_mrcnn before tf.keras is used, or set TF_USE_LEGACY_KERAS=1'
        )


HAS_KERAS_3 = _has_keras_3()
if HAS_KERAS_3:
    _choose()
