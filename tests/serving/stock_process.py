"""`stock_server.py` in a process of its own."""

import json
import pathlib
import subprocess
import sys

_PROGRAM = pathlib.Path(__file__).with_name('stock_server.py')


class StockServer:
    """Serves the folder `model` until it is closed; `flags` are those of the program."""

    def __init__(self, model, *flags):
        self._process = subprocess.Popen(
            [sys.executable, '-I', str(_PROGRAM), str(model), '--grpc', *map(str, flags)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError('the server has stopped, see above')
        self.ports = json.loads(line)

    def url(self, scheme):
        if scheme == 'grpc':
            return f'grpc://127.0.0.1:{self.ports["grpc"]}/model'
        return f'http://127.0.0.1:{self.ports["rest"]}/v1/models/model'

    def is_alive(self):
        return self._process.poll() is None

    def close(self):
        self._process.stdin.close()
        self._process.wait(20)
