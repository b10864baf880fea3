"""Fixtures shared by all tests, and how several processes share the tests."""

import fcntl
import os
import pathlib
import signal

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
if 'PYTEST_XDIST_WORKER_COUNT' in os.environ:
    # Their share of the cores for each of the processes, and for the programs that it starts.
    threads = max(1, os.cpu_count() // int(os.environ['PYTEST_XDIST_WORKER_COUNT']))
    os.environ.setdefault('TF_NUM_INTRAOP_THREADS', str(threads))
    os.environ.setdefault('TF_NUM_INTEROP_THREADS', str(threads))

import hypothesis  # noqa: E402
import psutil  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

import gan_mrcnn  # noqa: E402, F401  (chooses Keras 2 before a test uses `tf.keras`)

# Two of them, for the tests of tf.distribute; must be said before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices('CPU')[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

# A command in the background of a script ignores SIGINT, and so would every process that a test
# starts and sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)

# The same examples each time, however busy the machine is, and nothing kept of them.
hypothesis.settings.register_profile('tests', deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile('tests')

_REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
# Of memory for each process that runs tests: TensorFlow, its networks, and a program to test.
_WORKER_BYTES = 3 << 30
# They take longest and begin first, so that no process is left with one of them at the end.
_LONGEST = ('training/test_run.py', 'test_commands.py', 'test_task.py', 'serving/test_export.py')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto`: one process for each core, as far as memory goes; 0 is this one alone."""
    workers = min(os.cpu_count(), psutil.virtual_memory().available // _WORKER_BYTES)
    return workers if workers > 1 else 0


def pytest_collection_modifyitems(config, items):
    """In one of several processes, and in the order of the files."""
    if 'PYTEST_XDIST_WORKER' in os.environ and not config.pluginmanager.hasplugin('randomly'):
        items.sort(key=lambda item: not str(item.path).endswith(_LONGEST))


@pytest.fixture(scope='session')
def two_replicas():
    """A strategy on two logical CPU devices; one for all, since the keys of their collective
    operations would clash."""
    return tf.distribute.MirroredStrategy(['CPU:0', 'CPU:1'])


@pytest.fixture(scope='session')
def glas_dir():
    """Folder of the real gland data; the tests that need it skip where it is missing."""
    return _real_data('GLAS_DIR', 'glas', 'Grade.csv')


@pytest.fixture(scope='session')
def nuclei_dir():
    """Folder of the nuclei of the 2018 Data Science Bowl, as label images; skips likewise."""
    return _real_data('NUCLEI_DIR', 'nuclei', 'labels')


@pytest.fixture(scope='session')
def coco_dir():
    """Folder of a sample of COCO 2017, in its own layout; skips likewise."""
    return _real_data('COCO_DIR', 'coco_tiny', 'annotations')


@pytest.fixture(scope='session')
def real_slide():
    """A slide of a scanner, of OpenSlide's test data; skips likewise."""
    name = 'CMU-1-Small-Region.svs'
    return _real_data('SLIDES_DIR', 'slides', name) / name


def _real_data(variable, name, wanted):
    """The folder that a variable of the environment names; skips where `wanted` is not in it."""
    folder = pathlib.Path(os.environ.get(variable, _REPOSITORY.parent / 'shared/data' / name))
    if not (folder / wanted).exists():
        pytest.skip(f'the data {name} are not in {folder} (set {variable} to their folder)')
    return folder


@pytest.fixture(scope='session')
def exported(tmp_path_factory):
    """A tiny run and its SavedModel, `tests.serving.tiny.Exported`; one for all processes."""
    from tests.serving import tiny

    shared = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        shared = shared.parent
    with open(shared / 'serving.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return tiny.export_once(shared / 'serving')


@pytest.fixture(scope='session')
def predictor(exported):
    """The SavedModel, loaded."""
    from gan_mrcnn.prediction import predictor

    return predictor.load_saved_model(str(exported.model))


@pytest.fixture(scope='session')
def server(exported):
    """A server that knows nothing of this package."""
    from tests.serving import stock_process

    server = stock_process.StockServer(exported.model)
    yield server
    server.close()
