"""Keras 2 behind `tf.keras`, whatever is imported first."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

# TensorFlow 2.15 has Keras 2 there of itself.
from_2_16_on = pytest.mark.skipif(
    tuple(map(int, tf.__version__.split('.')[:2])) < (2, 16), reason='tf.keras is Keras 2 anyway'
)


def python(program):
    """Runs a program in a process of its own, in which nobody has chosen a Keras."""
    environment = {k: v for k, v in os.environ.items() if k != 'TF_USE_LEGACY_KERAS'}
    return subprocess.run(
        [sys.executable, '-c', program], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    'imports',
    [
        'import gan_mrcnn',
        pytest.param('import custom_ops', marks=from_2_16_on),
        pytest.param('from gan_mrcnn.modeling import heads', marks=from_2_16_on),
        pytest.param('import tensorflow, gan_mrcnn', marks=from_2_16_on),
        pytest.param('import keras, gan_mrcnn', marks=from_2_16_on),
    ],
)
def test_tf_keras_is_keras_2(imports):
    program = f'{imports}\nimport tensorflow as tf\nprint(tf.keras.layers.Layer.__module__)'
    # Keras 3 has no such module.
    assert python(program).stdout.strip().endswith('keras.src.engine.base_layer')


@from_2_16_on
def test_who_uses_keras_3_already_is_told_what_to_do():
    done = python('import tensorflow as tf\ntf.keras.Model\nimport gan_mrcnn')
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: gan_mrcnn needs Keras 2')
    assert last.endswith('import gan_mrcnn before tf.keras is used, or set TF_USE_LEGACY_KERAS=1')


def test_neither_package_imports_tensorflow_by_itself():
    done = python('import sys, gan_mrcnn, custom_ops; print(*sys.modules)')
    assert not {'tensorflow', 'keras', 'tf_keras'} & set(done.stdout.split())
    assert done.returncode == 0
