"""Fixtures shared by all tests."""

import os
import pathlib

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

import gan_mrcnn  # noqa: E402, F401  (chooses Keras 2 before a test uses `tf.keras`)

# Two of them, for the tests of tf.distribute; must be said before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='session')
def two_replicas():
    """A strategy on two logical CPU devices; one for all, since the keys of their collective
    operations would clash."""
    return tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


@pytest.fixture(scope='session')
def glas_dir():
    """Folder of the real gland data; the tests that need it skip where it is missing."""
    folder = pathlib.Path(os.environ.get('GLAS_DIR', _REPOSITORY.parent / 'shared/data/glas'))
    if not (folder / 'Grade.csv').is_file():
        pytest.skip(f'the gland data are not in {folder} (set GLAS_DIR to their folder)')
    return folder


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    """A tiny run and its SavedModel, `tests.serving.tiny.Exported`."""
    from tests.serving import tiny

    return tiny.export(tmp_path_factory.mktemp('serving'))


@pytest.fixture(scope='session')
def predictor(exported):
    """The SavedModel, loaded."""
    from gan_mrcnn.prediction import predictor

    return predictor.load_saved_model(str(exported.model))


@pytest.fixture(scope='session')
def server(exported):
    """A server that knows nothing of this package."""
    from tests.serving import tiny

    server = tiny.StockServer(exported.model)
    yield server
    server.close()
