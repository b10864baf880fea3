# SPDX-License-Identifier: Apache-2.0
"""The one place that knows which of the two sets of packages is installed (docs/install.md).

Which Keras `tf.keras` is belongs to both packages, and is in `custom_ops.keras_2`. Imports nothing
heavy.
"""

import importlib.util

from custom_ops import keras_2

# tensorflow-addons ended with TensorFlow 2.15; what stands in for it is in data/augment.py.
HAS_ADDONS = not keras_2.HAS_KERAS_3 and importlib.util.find_spec('tensorflow_addons') is not None
