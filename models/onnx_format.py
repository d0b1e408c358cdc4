"""The few parts of the ONNX file format that a transformer needs, in plain Python.

ONNX is protobuf; a message is a row of (field number, wire type, payload). The numbers below
are those of onnx.proto3 (github.com/onnx/onnx). Writing them here needs no package, and gives
the same bytes on every machine, so that the result can be pinned by its SHA-256.
"""

import struct

FLOAT, INT32, INT64 = 1, 6, 7  # TensorProto.DataType


def _varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(field, value):
    return _varint(field << 3) + _varint(value)


def _bytes(field, value):
    if isinstance(value, str):
        value = value.encode()
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field, value):
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def tensor(name, shape, values):
    """A TensorProto of fp32 values (an `array('f')`), row by row, little-endian."""
    dims = b"".join(_integer(1, size) for size in shape)
    return dims + _integer(2, FLOAT) + _bytes(8, name) + _bytes(9, values.tobytes())


def attribute(name, value):
    """An AttributeProto: a float or an integer, told by the type of the value."""
    if isinstance(value, float):
        return _bytes(1, name) + _float(2, value) + _integer(20, 1)
    return _bytes(1, name) + _integer(3, value) + _integer(20, 2)


def node(kind, inputs, outputs, domain="", **attributes):
    """A NodeProto, named by its first output; an empty input name leaves that input out."""
    out = b"".join(_bytes(1, name) for name in inputs)
    out += b"".join(_bytes(2, name) for name in outputs)
    out += _bytes(3, outputs[0]) + _bytes(4, kind)
    for name, value in attributes.items():
        out += _bytes(5, attribute(name, value))
    return out + _bytes(7, domain)


def value(name, data_type, shape):
    """A ValueInfoProto; a text in the shape is a size that is known only at run time."""
    dims = b"".join(
        _bytes(1, _bytes(2, size) if isinstance(size, str) else _integer(1, size)) for size in shape
    )
    return _bytes(1, name) + _bytes(2, _bytes(1, _integer(1, data_type) + _bytes(2, dims)))


def model(name, nodes, tensors, inputs, outputs, opsets):
    """A ModelProto: the whole file. `opsets` is a mapping of domain to version."""
    graph = b"".join(_bytes(1, item) for item in nodes) + _bytes(2, name)
    graph += b"".join(_bytes(5, item) for item in tensors)
    graph += b"".join(_bytes(11, item) for item in inputs)
    graph += b"".join(_bytes(12, item) for item in outputs)
    versions = (_bytes(1, domain) + _integer(2, version) for domain, version in opsets.items())
    header = _integer(1, 8) + _bytes(2, "bulkhead")  # IR version 8, producer
    return header + _bytes(7, graph) + b"".join(_bytes(8, item) for item in versions)
