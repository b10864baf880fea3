"""The versions of a model as TF Serving keeps them, for `stock_server.py`.

What it follows in TF Serving's documentation and source (of 2026-07):

- The highest number in the folder is served. A new one is loaded and warmed up while the old one
  answers, then takes its place; the old one goes when its requests have ended
  (`AvailabilityPreservingPolicy`).
- With batching, requests to one signature of one version are joined along dimension 0, and an error
  is the answer to all of a batch (`BatchingSession`). The scheduler is TensorFlow's own, the one
  that TF Serving has, by way of the operation `BatchFunction`.
"""

import contextlib
import gc
import os
import pathlib
import threading

import config_messages
import tensorflow as tf
from google.protobuf import text_format

WARM_UP = 'assets.extra/tf_serving_warmup_requests'


class NoVersionError(LookupError):
    """No such version is available."""


class Versions:
    """The versions below `folder`; call `poll` once, and again for what changed since."""

    def __init__(self, folder, batching=None):
        self._folder = pathlib.Path(folder)
        self._batching = batching
        # Guards all below, and wakes who waits for the end of requests.
        self._changed = threading.Condition()
        self._states = {}
        # Number -> the loaded model, its signatures, and how many requests use them.
        self._models, self._signatures, self._requests = {}, {}, {}

    def poll(self):
        """Loads the newest version where it is not served yet, then unloads the others."""
        numbers = [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]
        newest = max(numbers, default=None)
        if newest is None or newest in self._states:
            return
        self._set(newest, 'LOADING')
        try:
            model, signatures = load(self._folder / str(newest), self._batching)
        except Exception:
            self._set(newest, 'END')
            raise
        with self._changed:
            self._models[newest], self._signatures[newest] = model, signatures
            self._requests[newest] = 0
        self._set(newest, 'AVAILABLE')
        for number in sorted(set(self._signatures) - {newest}):
            self._unload(number)

    def _unload(self, number):
        self._set(number, 'UNLOADING')
        with self._changed:
            self._changed.wait_for(lambda: self._requests[number] == 0)
            del self._models[number], self._signatures[number], self._requests[number]
        gc.collect()
        self._set(number, 'END')

    def _set(self, number, state):
        with self._changed:
            self._states[number] = state

    def states(self):
        """Number -> state, by the names that TF Serving gives them."""
        with self._changed:
            return dict(sorted(self._states.items()))

    @contextlib.contextmanager
    def use(self, number=None):
        """Number and signatures of a version, which stays loaded meanwhile; None for the newest.

        Raises:
          NoVersionError: it is not available.
        """
        with self._changed:
            available = [n for n, state in self._states.items() if state == 'AVAILABLE']
            found = max(available, default=None) if number is None else number
            if found not in available:
                raise NoVersionError(f'Servable not found for request: {number or "latest"}')
            self._requests[found] += 1
        try:
            yield found, self._signatures[found]
        finally:
            with self._changed:
                self._requests[found] -= 1
                self._changed.notify_all()


def load(folder, batching=None):
    """A SavedModel, which must be kept, and its signatures by name; its warm-up requests have run.

    The signatures alone do not keep their variables.
    """
    model = tf.saved_model.load(str(folder))
    signatures = dict(model.signatures)
    if batching:
        signatures = {
            name: batched(function, batching, f'version_{folder.name}_{name}')
            for name, function in signatures.items()
        }
    if (folder / WARM_UP).exists():
        _warm_up(signatures, str(folder / WARM_UP))
    return model, signatures


def _warm_up(signatures, path):
    from tensorflow_serving.apis import prediction_log_pb2

    for record in tf.data.TFRecordDataset(path):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        signatures[request.model_spec.signature_name](**as_tensors(request.inputs))


def as_tensors(inputs):
    """Tensors by name from a map of `TensorProto`."""
    return {
        name: tf.constant(tf.make_ndarray(proto), tf.dtypes.as_dtype(proto.dtype))
        for name, proto in inputs.items()
    }


def read_batching(path):
    """`BatchingParameters` of a file as `--batching_parameters_file` takes it."""
    content = pathlib.Path(path).read_text(encoding='utf-8')
    return text_format.Parse(content, config_messages.BatchingParameters())


# As TF Serving has them where a file does not say.
_DEFAULTS = {
    'max_batch_size': 1000,
    'batch_timeout_micros': 0,
    'max_enqueued_batches': 10,
    'num_batch_threads': os.cpu_count(),
}


def batched(signature, parameters, name):
    """A signature of one input, called with joined requests; `name` is that of its queue."""
    decorate = tf.nondifferentiable_batch_function(
        allowed_batch_sizes=list(parameters.allowed_batch_sizes) or None,
        autograph=False,
        enable_large_batch_splitting=False,
        **{
            field: getattr(parameters, field).value if parameters.HasField(field) else default
            for field, default in _DEFAULTS.items()
        },
    )
    ((key, spec),) = signature.structured_input_signature[1].items()
    names = sorted(signature.structured_outputs)

    def run(joined):
        outputs = signature(**{key: joined})
        return [outputs[name] for name in names]

    @tf.function(input_signature=[spec])
    def call(value):
        # Queues of one name would be one queue.
        with tf.name_scope(name):
            return dict(zip(names, decorate(run)(value)))

    return BatchedSignature(call.get_concrete_function(), key, spec)


class BatchedSignature:
    """Called, and asked for its input, as the signatures of a loaded SavedModel are."""

    def __init__(self, function, key, spec):
        self.structured_input_signature = ((), {key: spec})
        self._function, self._key = function, key

    def __call__(self, **inputs):
        return self._function(inputs[self._key])
