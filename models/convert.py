"""Turns the safetensors weights of a BERT encoder into model.onnx, and checks the result.

    python3 models/convert.py --manifest models/NAME.json --weights FOLDER --output model.onnx
    python3 models/convert.py --manifest models/NAME.json --check model.onnx --runtime LIBRARY

The graph uses ONNX Runtime's fused operators (domain com.microsoft) for attention, bias + GELU
and residual + layer norm. Inputs: `input_ids` and `attention_mask`, int64 [batch, sequence].
Output: `last_hidden_state`, fp32 [batch, sequence, dimension]; pooling is left to the caller.
There is no `token_type_ids` input: the vector of type 0 is added to every position's vector.

Needs Python 3.9 and nothing else; the same weights give the same bytes everywhere.
"""

import argparse
import array
import hashlib
import json
import math
import pathlib
import struct
import sys

import onnx_format as onnx
import onnx_runtime

MICROSOFT = "com.microsoft"


class Weights:
    """The fp32 tensors of a safetensors file: 8 bytes of length, a JSON table, the data."""

    def __init__(self, path):
        self._data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", self._data)
        self._table = json.loads(self._data[8 : 8 + length])
        self._start = 8 + length

    def shape(self, name):
        return self._table[name]["shape"]

    def values(self, name):
        entry = self._table[name]
        if entry["dtype"] != "F32":
            raise ValueError(f"{name} is {entry['dtype']}; only F32 weights can be converted")
        begin, end = entry["data_offsets"]
        values = array.array("f")
        values.frombytes(self._data[self._start + begin : self._start + end])
        return values

    def transposed(self, *names):
        """[out, in] matrices side by side as one [in, sum of out] matrix, as MatMul wants them."""
        matrices = [(self.values(name), self.shape(name)[1]) for name in names]
        rows = array.array("f")
        for row in range(matrices[0][1]):
            for values, inputs in matrices:
                rows.extend(values[row::inputs])
        return rows


class Graph:
    """The nodes and tensors of an encoder, in the order in which they are computed."""

    def __init__(self, weights, config):
        self._weights = weights
        self._epsilon = float(config["layer_norm_eps"])
        self._heads = config["num_attention_heads"]
        self._width = config["hidden_size"]
        self._inner = config["intermediate_size"]
        self.nodes, self.tensors = [], []

    def vector(self, name):
        self.tensors.append(onnx.tensor(name, self._weights.shape(name), self._weights.values(name)))
        return name

    def matrix(self, name, rows, columns, *sources):
        self.tensors.append(onnx.tensor(name, [rows, columns], self._weights.transposed(*sources)))
        return name

    def add(self, kind, inputs, output, domain=MICROSOFT, unused=(), **attributes):
        self.nodes.append(onnx.node(kind, inputs, [output, *unused], domain, **attributes))
        return output

    def embed(self):
        prefix = "embeddings."
        positions = self._weights.values(prefix + "position_embeddings.weight")
        first_type = self._weights.values(prefix + "token_type_embeddings.weight")[: self._width]
        for index in range(len(positions)):
            positions[index] += first_type[index % self._width]
        shape = self._weights.shape(prefix + "position_embeddings.weight")
        self.tensors.append(onnx.tensor("positions", shape, positions))
        for name in ("input_ids", "attention_mask"):
            self.add("Cast", [name], name + ".int32", "", to=onnx.INT32)
        words = self.vector(prefix + "word_embeddings.weight")
        norm = [self.vector(prefix + "LayerNorm." + part) for part in ("weight", "bias")]
        inputs = ["input_ids.int32", "", words, "positions", "", *norm]
        # The second output, an index of the mask, must be there although nobody reads it.
        return self.add("EmbedLayerNormalization", inputs, "embedded", unused=["mask_index"],
                        epsilon=self._epsilon)

    def layer(self, number, hidden, output):
        prefix = f"encoder.layer.{number}."
        width, inner = self._width, self._inner
        own = [prefix + f"attention.self.{part}" for part in ("query", "key", "value")]
        qkv = self.matrix(prefix + "qkv.weight", width, 3 * width, *(p + ".weight" for p in own))
        biases = array.array("f")
        for part in own:
            biases.extend(self._weights.values(part + ".bias"))
        self.tensors.append(onnx.tensor(prefix + "qkv.bias", [3 * width], biases))
        inputs = [hidden, qkv, prefix + "qkv.bias", "attention_mask.int32"]
        seen = self.add("Attention", inputs, prefix + "attention", num_heads=self._heads)
        hidden = self.close(prefix + "attention.output.", seen, hidden, width, prefix + "attended")

        up = prefix + "intermediate.dense."
        weight = self.matrix(up + "weight", width, inner, up + "weight")
        raised = self.add("MatMul", [hidden, weight], prefix + "raised", "")
        raised = self.add("BiasGelu", [raised, self.vector(up + "bias")], prefix + "gelu")
        return self.close(prefix + "output.", raised, hidden, inner, output)

    def close(self, prefix, inner, hidden, rows, output):
        """The end of either half of a layer: project, add bias and residual, normalise."""
        dense = prefix + "dense."
        weight = self.matrix(dense + "weight", rows, self._width, dense + "weight")
        inner = self.add("MatMul", [inner, weight], prefix + "projected", "")
        norm = [self.vector(prefix + "LayerNorm." + part) for part in ("weight", "bias")]
        inputs = [inner, hidden, *norm, self.vector(dense + "bias")]
        return self.add("SkipLayerNormalization", inputs, output, epsilon=self._epsilon)


def convert(manifest, folder, output):
    """Writes the ONNX file and returns its SHA-256."""
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "bert" or config["hidden_act"] != "gelu":
        raise ValueError("only BERT encoders with GELU can be converted")
    graph = Graph(Weights(folder / "model.safetensors"), config)
    layers = config["num_hidden_layers"]
    hidden = graph.embed()
    for number in range(layers):
        last = number + 1 == layers
        hidden = graph.layer(number, hidden, "last_hidden_state" if last else f"hidden.{number}")
    batch = ["batch", "sequence"]
    data = onnx.model(
        manifest["name"],
        graph.nodes,
        graph.tensors,
        [onnx.value(name, onnx.INT64, batch) for name in ("input_ids", "attention_mask")],
        [onnx.value(hidden, onnx.FLOAT, [*batch, config["hidden_size"]])],
        {"": 17, MICROSOFT: 1},
    )
    output.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def embed(manifest, model, runtime):
    """Vectors of the manifest's known sentences, mean-pooled, unit length, in one padded batch."""
    rows = [known["input_ids"] for known in manifest["known_vectors"]]
    longest, width = max(map(len, rows)), manifest["dimension"]
    session = onnx_runtime.Session(runtime, model)
    inputs = {
        "input_ids": [row + [0] * (longest - len(row)) for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
    }
    hidden = session.run(inputs, "last_hidden_state", [len(rows), longest, width])
    vectors = []
    for index, row in enumerate(rows):
        start = index * longest * width
        tokens = hidden[start : start + len(row) * width]
        mean = [sum(tokens[column::width]) / len(row) for column in range(width)]
        length = math.sqrt(sum(part * part for part in mean))
        vectors.append([part / length for part in mean])
    return vectors


def check(manifest, model, runtime):
    """Compares with the manifest's known vectors; raises `ValueError` where they differ."""
    for known, vector in zip(manifest["known_vectors"], embed(manifest, model, runtime)):
        error = max(abs(a - b) for a, b in zip(known["starts"], vector))
        if not error <= manifest["tolerance"]:
            raise ValueError(f"the vector of {known['text']!r} is off by {error:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--weights", type=pathlib.Path, help="folder with the weights, to convert")
    parser.add_argument("--output", type=pathlib.Path, help="where to write the ONNX file")
    parser.add_argument("--check", type=pathlib.Path, help="ONNX file to check against the manifest")
    parser.add_argument("--runtime", type=pathlib.Path, help="libonnxruntime.so to check it with")
    parser.add_argument("--show", action="store_true", help="print the vectors, for a new manifest")
    options = parser.parse_args()
    manifest = json.loads(options.manifest.read_text())
    try:
        if options.weights:
            print(convert(manifest, options.weights, options.output))
        if options.show:
            for vector in embed(manifest, options.check, options.runtime):
                print([round(part, 7) for part in vector[:8]])
        elif options.check:
            check(manifest, options.check, options.runtime)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"{manifest['name']}: {error}")


if __name__ == "__main__":
    main()
