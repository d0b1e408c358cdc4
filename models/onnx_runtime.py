"""Runs a model with the very ONNX Runtime library that the server loads, through its C interface.

Only what the check of a conversion needs: one session, integer inputs, one fp32 output. The
positions below are those of `struct OrtApi` in onnxruntime_c_api.h, which only ever grows at
its end. Used in a process of its own (convert.py), so that a native crash is a failed check.
"""

import array
import ctypes

_API_VERSION = 17  # the oldest version that has all of the functions below
_GET_ERROR_MESSAGE, _CREATE_ENV, _CREATE_SESSION, _RUN, _CREATE_OPTIONS = 2, 3, 7, 9, 10
_CREATE_TENSOR, _TENSOR_DATA, _CPU_MEMORY = 49, 51, 69
_WARNING, _INT64, _DEVICE_ALLOCATOR, _DEFAULT_MEMORY = 2, 7, 0, 0


class _ApiBase(ctypes.Structure):
    _fields_ = [("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32))]


class Session:
    """A model loaded into ONNX Runtime. Raises `RuntimeError` with the library's own words."""

    def __init__(self, library, model):
        base = ctypes.CDLL(str(library)).OrtGetApiBase
        base.restype = ctypes.POINTER(_ApiBase)
        table = base().contents.get_api(_API_VERSION)
        if not table:
            raise RuntimeError(f"{library} does not offer version {_API_VERSION} of its interface")
        self._table = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))
        env, options, self._session, self._memory = (ctypes.c_void_p() for _ in range(4))
        self._call(_CREATE_ENV, _WARNING, b"bulkhead", ctypes.byref(env))
        self._call(_CREATE_OPTIONS, ctypes.byref(options))
        path = str(model).encode()
        self._call(_CREATE_SESSION, env, path, options, ctypes.byref(self._session))
        self._call(_CPU_MEMORY, _DEVICE_ALLOCATOR, _DEFAULT_MEMORY, ctypes.byref(self._memory))

    def run(self, inputs, output, shape):
        """Returns `output`, an `array('f')` of the given shape, for int64 inputs [batch, sequence].

        `inputs` maps a name to a list of rows of equal length.
        """
        names, values, kept = [], [], []
        for name, rows in inputs.items():
            data = array.array("q", [item for row in rows for item in row])
            sizes = (ctypes.c_int64 * 2)(len(rows), len(rows[0]))
            value = ctypes.c_void_p()
            place = ctypes.c_void_p(data.buffer_info()[0])
            length = ctypes.c_size_t(len(data) * data.itemsize)
            self._call(_CREATE_TENSOR, self._memory, place, length, sizes, ctypes.c_size_t(2),
                       _INT64, ctypes.byref(value))
            kept.append((data, sizes))  # the tensor borrows them
            names.append(name.encode())
            values.append(value)
        count = ctypes.c_size_t(len(names))
        found = (ctypes.c_void_p * 1)()
        self._call(_RUN, self._session, None, (ctypes.c_char_p * len(names))(*names),
                   (ctypes.c_void_p * len(values))(*values), count,
                   (ctypes.c_char_p * 1)(output.encode()), ctypes.c_size_t(1), found)
        data = ctypes.c_void_p()
        self._call(_TENSOR_DATA, ctypes.c_void_p(found[0]), ctypes.byref(data))
        size = 4
        for part in shape:
            size *= part
        result = array.array("f")
        result.frombytes(ctypes.string_at(data, size))
        return result

    def _call(self, position, *arguments):
        call = ctypes.CFUNCTYPE(ctypes.c_void_p)(self._table[position])
        call.argtypes = None
        status = call(*arguments)
        if status:
            message = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(
                self._table[_GET_ERROR_MESSAGE])
            raise RuntimeError(message(status).decode(errors="replace"))
