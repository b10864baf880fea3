"""A SavedModel through TensorFlow's C API, the loader that TF Serving uses; run as a program.

    python -I c_api.py SAVED_MODEL SIGNATURE OUT.npz IMAGE...

ctypes and NumPy only: no Python of TensorFlow is imported, so that nothing but what is in the
wheel's library can know an operation. The images go in one batch.
"""

import ctypes
import importlib.util
import pathlib
import sys

import numpy as np

_DTYPES = {1: np.float32, 3: np.int32}  # TF_FLOAT, TF_INT32
_STRING = 7


class Buffer(ctypes.Structure):
    _fields_ = [
        ('data', ctypes.c_void_p),
        ('length', ctypes.c_size_t),
        ('deallocator', ctypes.c_void_p),
    ]


class Output(ctypes.Structure):
    _fields_ = [('operation', ctypes.c_void_p), ('index', ctypes.c_int)]


def load_library():
    """The wheel's library, found without importing the package."""
    folder = pathlib.Path(importlib.util.find_spec('tensorflow').origin).parent
    library = ctypes.CDLL(str(folder / 'libtensorflow_cc.so.2'))
    pointers = (
        'TF_NewStatus TF_Message TF_NewGraph TF_NewSessionOptions TF_NewBuffer TF_TensorData '
        'TF_LoadSessionFromSavedModel TF_GraphOperationByName TF_AllocateTensor'
    )
    for name in pointers.split():
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_Dim.restype = ctypes.c_int64
    library.TF_TensorByteSize.restype = ctypes.c_size_t
    return library


class Model:
    """A session; `signatures` maps a name to (inputs, outputs), each name to tensor."""

    def __init__(self, folder):
        self.lib = load_library()
        self.status = ctypes.c_void_p(self.lib.TF_NewStatus())
        self.graph = ctypes.c_void_p(self.lib.TF_NewGraph())
        meta = ctypes.c_void_p(self.lib.TF_NewBuffer())
        tags = (ctypes.c_char_p * 1)(b'serve')
        self.session = ctypes.c_void_p(
            self.lib.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self.lib.TF_NewSessionOptions()),
                None,
                str(folder).encode(),
                tags,
                1,
                self.graph,
                meta,
                self.status,
            )
        )
        self.check()
        buffer = ctypes.cast(meta, ctypes.POINTER(Buffer)).contents
        self.meta_graph = ctypes.string_at(buffer.data, buffer.length)

    def check(self):
        if self.lib.TF_GetCode(self.status):
            raise RuntimeError(self.lib.TF_Message(self.status).decode())

    def output(self, tensor_name):
        name, _, index = tensor_name.partition(':')
        operation = self.lib.TF_GraphOperationByName(self.graph, name.encode())
        if not operation:
            raise KeyError(tensor_name)
        return Output(operation, int(index))

    def strings(self, values):
        """A TF_STRING tensor [len(values)]."""
        dims = (ctypes.c_int64 * 1)(len(values))
        tensor = ctypes.c_void_p(
            self.lib.TF_AllocateTensor(_STRING, dims, 1, ctypes.c_size_t(24 * len(values)))
        )
        start = self.lib.TF_TensorData(tensor)
        for i, value in enumerate(values):
            place = ctypes.c_void_p(start + 24 * i)
            self.lib.TF_StringInit(place)
            self.lib.TF_StringCopy(place, value, ctypes.c_size_t(len(value)))
        return tensor

    def run(self, feeds, fetches):
        """Arrays of the tensors named in `fetches`; `feeds` maps a tensor's name to a tensor."""
        inputs = (Output * len(feeds))(*map(self.output, feeds))
        values = (ctypes.c_void_p * len(feeds))(*(tensor.value for tensor in feeds.values()))
        outputs = (Output * len(fetches))(*map(self.output, fetches))
        found = (ctypes.c_void_p * len(fetches))()
        none = (None, inputs, values, len(feeds), outputs, found, len(fetches))
        self.lib.TF_SessionRun(self.session, *none, None, 0, None, self.status)
        self.check()
        return [self.array(ctypes.c_void_p(tensor)) for tensor in found]

    def array(self, tensor):
        shape = [self.lib.TF_Dim(tensor, i) for i in range(self.lib.TF_NumDims(tensor))]
        size = self.lib.TF_TensorByteSize(tensor)
        content = ctypes.string_at(self.lib.TF_TensorData(tensor), size)
        return np.frombuffer(content, _DTYPES[self.lib.TF_TensorType(tensor)]).reshape(shape)


def main():
    model = Model(sys.argv[1])
    # Tensor names of the signature are given by the caller: reading a MetaGraphDef takes protobuf.
    import json

    names = json.loads(sys.argv[2])
    images = [pathlib.Path(path).read_bytes() for path in sys.argv[4:]]
    fetches = names['outputs']
    values = model.run({names['input']: model.strings(images)}, list(fetches.values()))
    assert 'tensorflow' not in sys.modules
    np.savez(sys.argv[3], **dict(zip(fetches, values)))


if __name__ == '__main__':
    main()
