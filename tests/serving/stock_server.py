"""A server that answers as TF Serving does, with stock TensorFlow alone; run as a program.

    python -I stock_server.py MODEL_FOLDER [--grpc] [--batching_parameters_file FILE]

`gan_mrcnn`, `custom_ops` and `official` cannot be imported in its process: what it loads is what
any server loads. It prints the ports that it listens on, once a version is loaded, and ends with
its standard input. REST follows https://www.tensorflow.org/tfx/serving/api_rest, row format; `b64`
as there. `stock_versions.py` is how versions come and go, and batching.
"""

import argparse
import base64
import bisect
import contextlib
import json
import os
import pathlib
import re
import sys
import threading
import time

for _name in ('gan_mrcnn', 'custom_ops', 'official'):
    sys.modules[_name] = None
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
# -I leaves out the folder of the program.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer  # noqa: E402

import stock_versions  # noqa: E402
import tensorflow as tf  # noqa: E402

MODEL = 'model'
METRICS = '/monitoring/prometheus/metrics'
# As many requests at once as TF Serving takes from each of REST and gRPC, unless told otherwise.
WORKERS = 4 * os.cpu_count()
_PLACE = re.compile(
    rf'/v1/models/{MODEL}(/versions/(?P<version>\d+))?(?P<metadata>/metadata)?(:(?P<verb>\w+))?'
)
# TF Serving's `ToHTTPStatusCode`, as far as a Predict ends so.
_HTTP = {'NOT_FOUND': 404, 'RESOURCE_EXHAUSTED': 429, 'UNAVAILABLE': 503}


class Metrics:
    """Requests and their times, as text for Prometheus; names and limits are TF Serving's."""

    LIMITS = [10 * 1.8**power for power in range(33)]

    def __init__(self):
        self._lock = threading.Lock()
        self._counts = {}
        self._histograms = {}

    @contextlib.contextmanager
    def timed(self, api, entrypoint):
        """Counts what runs inside by how it ends; only what ends well has a time, as there."""
        start, status = time.perf_counter(), 'OK'
        try:
            yield
        except Exception as error:
            status = code_name(error)
            raise
        finally:
            micros = 1e6 * (time.perf_counter() - start)
            with self._lock:
                self._counts[status] = self._counts.get(status, 0) + 1
                if status == 'OK':
                    empty = ([0] * (len(self.LIMITS) + 1), [0.0])
                    buckets, total = self._histograms.setdefault((api, entrypoint), empty)
                    buckets[bisect.bisect_right(self.LIMITS, micros)] += 1
                    total[0] += micros

    def text(self):
        with self._lock:
            lines = ['# TYPE :tensorflow:serving:request_count counter']
            for status, count in self._counts.items():
                labels = f'model_name="{MODEL}",status="{status}"'
                lines.append(f':tensorflow:serving:request_count{{{labels}}} {count}')
            name = ':tensorflow:serving:request_latency'
            lines.append(f'# TYPE {name} histogram')
            for (api, entrypoint), (buckets, total) in self._histograms.items():
                labels = f'model_name="{MODEL}",API="{api}",entrypoint="{entrypoint}"'
                seen = 0
                for limit, count in zip([*map(str, self.LIMITS), '+Inf'], buckets):
                    seen += count
                    lines.append(f'{name}_bucket{{{labels},le="{limit}"}} {seen}')
                lines += [f'{name}_sum{{{labels}}} {total[0]}', f'{name}_count{{{labels}}} {seen}']
        return '\n'.join(lines) + '\n'


def code_name(error):
    """Name of the status of an error, as gRPC has them."""
    if isinstance(error, stock_versions.NoVersionError):
        return 'NOT_FOUND'
    for name in ('FAILED_PRECONDITION', *_HTTP):
        if getattr(error, 'error_code', None) == getattr(tf.errors, name):
            return name
    return 'INVALID_ARGUMENT'


def as_inputs(function, rows):
    """Tensors from REST's rows: by name or, where there is one input, the bare value."""
    _, specs = function.structured_input_signature
    (name,) = specs
    rows = [row if isinstance(row, dict) and 'b64' not in row else {name: row} for row in rows]
    values = []
    for row in rows:
        (key,) = row
        if key != name:
            raise ValueError(f'input {key} is not one of {name}')
        value = row[name]
        values.append(base64.b64decode(value['b64']) if isinstance(value, dict) else value)
    return {name: tf.constant(values, specs[name].dtype)}


def predict(signatures, request):
    """The response to a request in row format, both as REST has them."""
    function = signatures[request.get('signature_name', 'serving_default')]
    rows = request['instances']
    outputs = function(**as_inputs(function, rows))
    outputs = {name: value.numpy().tolist() for name, value in outputs.items()}
    return {
        'predictions': [
            {name: value[i] for name, value in outputs.items()} for i in range(len(rows))
        ]
    }


def make_handler(versions, metrics):
    workers = threading.BoundedSemaphore(WORKERS)

    class Handler(BaseHTTPRequestHandler):
        # Connections stay, as they do with TF Serving.
        protocol_version = 'HTTP/1.1'
        disable_nagle_algorithm = True

        def answer(self, status, content, kind='application/json'):
            body = content if kind == 'text/plain' else json.dumps(content)
            self.send_response(status)
            self.send_header('Content-Type', kind)
            self.send_header('Content-Length', str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_GET(self):  # noqa: N802
            place = _PLACE.fullmatch(self.path)
            if self.path == METRICS:
                self.answer(200, metrics.text(), 'text/plain')
            elif place is None or place['verb']:
                self.answer(404, {'error': 'Not found'})
            elif place['metadata']:
                self.answer_metadata(place['version'])
            else:
                self.answer_status(place['version'])

        def answer_status(self, version):
            """Answers 200 for any known version, also one that does not answer requests yet."""
            states = {
                number: state
                for number, state in versions.states().items()
                if version is None or number == int(version)
            }
            status = [{'version': str(n), 'state': state} for n, state in states.items()]
            content = {'model_version_status': status} if status else {'error': 'Not found'}
            self.answer(200 if status else 404, content)

        def answer_metadata(self, version):
            """Answers 200 where a request would be answered."""
            try:
                with versions.use(version and int(version)) as (number, _):
                    self.answer(200, {'model_spec': {'name': MODEL, 'version': str(number)}})
            except stock_versions.NoVersionError as error:
                self.answer(404, {'error': str(error)})

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers['Content-Length']))
            place = _PLACE.fullmatch(self.path)
            if place is None or place['verb'] != 'predict':
                self.answer(404, {'error': f'Malformed request: POST {self.path}'})
                return
            version = place['version'] and int(place['version'])
            try:
                timed = metrics.timed('predict', 'REST')
                with workers, timed, versions.use(version) as (_, signatures):
                    content = predict(signatures, json.loads(body))
            except Exception as error:
                self.answer(_HTTP.get(code_name(error), 400), {'error': str(error)})
            else:
                self.answer(200, content)

        def log_message(self, *args):
            pass

    return Handler


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    # Connections that wait to be taken; five, as is the default, are refused under load.
    request_queue_size = 128


def serve_grpc(versions, metrics):
    """Port of a PredictionService."""
    from concurrent import futures

    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    def respond(request):
        spec = request.model_spec
        if spec.name != MODEL:
            raise stock_versions.NoVersionError(f'Servable not found for request: {spec.name}')
        version = spec.version.value if spec.HasField('version') else None
        with versions.use(version) as (number, signatures):
            function = signatures[spec.signature_name or 'serving_default']
            outputs = function(**stock_versions.as_tensors(request.inputs))
            response = predict_pb2.PredictResponse()
            response.model_spec.name, response.model_spec.version.value = MODEL, number
            for name, value in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            try:
                with metrics.timed('Predict', 'GRPC'):
                    return respond(request)
            except Exception as error:
                context.abort(getattr(grpc.StatusCode, code_name(error)), str(error))

    options = [('grpc.max_receive_message_length', -1)]
    server = grpc.server(futures.ThreadPoolExecutor(WORKERS), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    return server, port


def poll(versions, seconds):
    """Looks for new versions for ever; a version that cannot be loaded is named, and left."""
    while True:
        time.sleep(seconds)
        try:
            versions.poll()
        except Exception as error:
            print(error, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--grpc', action='store_true')
    parser.add_argument('--batching_parameters_file')
    parser.add_argument('--file_system_poll_wait_seconds', type=float, default=1)
    options = parser.parse_args()
    file = options.batching_parameters_file
    versions = stock_versions.Versions(options.model, file and stock_versions.read_batching(file))
    metrics = Metrics()
    versions.poll()
    http = HttpServer(('127.0.0.1', 0), make_handler(versions, metrics))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    ports, keep = {'rest': http.server_port}, []
    if options.grpc:
        server, ports['grpc'] = serve_grpc(versions, metrics)
        keep.append(server)
    seconds = options.file_system_poll_wait_seconds
    threading.Thread(target=poll, args=(versions, seconds), daemon=True).start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == '__main__':
    main()
