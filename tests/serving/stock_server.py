"""A server that answers as TF Serving does, with stock TensorFlow alone; run as a program.

    python -I stock_server.py MODEL_FOLDER [--grpc]

`gan_mrcnn`, `custom_ops` and `official` cannot be imported in its process: what it loads is what
any server loads. It prints the ports that it listens on and ends with its standard input. REST
follows https://www.tensorflow.org/tfx/serving/api_rest, row format; `b64` as there.
"""

import base64
import json
import os
import pathlib
import sys
import threading

for _name in ('gan_mrcnn', 'custom_ops', 'official'):
    sys.modules[_name] = None
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

from http.server import BaseHTTPRequestHandler, HTTPServer  # noqa: E402

import tensorflow as tf  # noqa: E402

MODEL = 'model'


def load(folder):
    """Version and signatures of the newest version, as TF Serving serves a folder."""
    versions = [path for path in pathlib.Path(folder).iterdir() if path.name.isdecimal()]
    newest = max(versions, key=lambda path: int(path.name))
    return int(newest.name), tf.saved_model.load(str(newest))


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
    return {
        'predictions': [
            {name: value[i].numpy().tolist() for name, value in outputs.items()}
            for i in range(len(rows))
        ]
    }


def make_handler(version, signatures):
    base = f'/v1/models/{MODEL}'
    places = {f'{base}{place}': place for place in ('', f'/versions/{version}')}

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):  # noqa: N802
            state = {'version': str(version), 'state': 'AVAILABLE'}
            known = self.path in places
            content = {'model_version_status': [state]} if known else {'error': 'Not found'}
            self.answer(200 if known else 404, content)

        def do_POST(self):  # noqa: N802
            body = self.rfile.read(int(self.headers['Content-Length']))
            try:
                place, _, verb = self.path.rpartition(':')
                if place not in places or verb != 'predict':
                    self.answer(404, {'error': f'Malformed request: POST {self.path}'})
                    return
                self.answer(200, predict(signatures, json.loads(body)))
            except Exception as error:
                self.answer(400, {'error': str(error)})

        def log_message(self, *args):
            pass

    return Handler


def serve_grpc(signatures):
    """Port of a PredictionService."""
    from concurrent import futures

    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            if request.model_spec.name != MODEL:
                context.abort(grpc.StatusCode.NOT_FOUND, 'Servable not found')
            function = signatures[request.model_spec.signature_name or 'serving_default']
            inputs = {
                name: tf.constant(tf.make_ndarray(proto), tf.dtypes.as_dtype(proto.dtype))
                for name, proto in request.inputs.items()
            }
            try:
                outputs = function(**inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            response = predict_pb2.PredictResponse()
            for name, value in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return response

    server = grpc.server(futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port('127.0.0.1:0')
    server.start()
    return server, port


def main():
    version, loaded = load(sys.argv[1])
    http = HTTPServer(('127.0.0.1', 0), make_handler(version, loaded.signatures))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    ports, keep = {'rest': http.server_port}, []
    if '--grpc' in sys.argv:
        server, ports['grpc'] = serve_grpc(loaded.signatures)
        keep.append(server)
    print(json.dumps(ports), flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == '__main__':
    main()
