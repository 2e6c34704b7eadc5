"""Writes a decoder as an ONNX file with 8-bit weights for onnxruntime, and measures how near its logits are.

The graph is written by hand, a node an operation, with keys and values as inputs and outputs: it has nothing of the
exporters' tracing, and the weights are never held in float32 together. A weight is 8 bits with a scale a block of 32;
onnxruntime quantizes the activations while it runs, a token at a time, so that what stands beside a text in a batch
changes nothing.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khmer_assets.compression.calibration import MERGED_MODEL, CalibrationSpec, calibration_samples
from khmer_assets.compression.gguf import rotary_factors
from khmer_assets.compression.parity import logits_alike
from khmer_assets.training.models import CONV1D_ARCHITECTURES
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gpt2")
FIGURES = "onnx.json"
FILE = "model.onnx"
BLOCK = 32  # weights that share a scale
OPSET = 20
IN_GRAPH = 1024  # bytes of a weight that stands in the graph itself
ALIGNED = 4096  # where a weight begins in the file beside, so that it can be mapped
ACTIVATIONS = 4  # onnxruntime's number for 8-bit activations


class Spec(CalibrationSpec):
    """On the first of the calibration texts the logits are compared."""


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `model.onnx`, its weights, the tokenizer, and `onnx.json` with the figures that are returned, those of
    `logits_alike`. Raises `Refusal` for an architecture that is not known."""
    import numpy as np
    import onnxruntime
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    write(spec.model, run.output / FILE)
    tokenizer.save_pretrained(run.output)
    session = onnxruntime.InferenceSession(run.output / FILE, providers=["CPUExecutionProvider"])
    texts = calibration_samples(spec, tokenizer)

    def logits_of(ids: list[int]) -> np.ndarray[Any, Any]:
        logits: np.ndarray[Any, Any] = session.run(["logits"], first_inputs(session, 1) | inputs_of([ids], len(ids)))[0]
        return logits[0]

    figures = {
        MERGED_MODEL: spec.model.name,
        **logits_alike(spec.model, tokenizer, texts, spec.length, logits_of),
        "onnx_bytes": sum(file.stat().st_size for file in run.output.glob(f"{FILE}*")),
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def inputs_of(rows: list[list[int]], logits: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """The inputs for rows of ids of one length, of which the last `logits` are told."""
    import numpy as np

    return {"input_ids": np.array(rows, dtype=np.int64), "num_logits_to_keep": np.array([logits], dtype=np.int64)}


def first_inputs(session: Any, rows: int) -> dict[str, "np.ndarray[Any, Any]"]:
    """The keys and values of so many rows of which nothing has been read."""
    import numpy as np

    past = [one for one in session.get_inputs() if one.name.startswith("past_key_values.")]
    return {one.name: np.zeros((rows, one.shape[1], 0, one.shape[3]), dtype=np.float32) for one in past}


def write(model: Path, file: Path, quantized: bool = True) -> None:
    """Write the transformers folder `model` as an ONNX decoder with its weights in `<file>.data`; in float32 where it
    is not `quantized`.

    Inputs: input_ids (rows, tokens), num_logits_to_keep (1) and past_key_values.N.key and .value (rows, heads, tokens
    read, width); outputs: logits (rows, kept, vocabulary) and present.N.key and .value. All rows of a batch have read
    equally many tokens. Raises `Refusal` when there is no such decoder for the model.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    if config.model_type not in ARCHITECTURES:
        raise Refusal(f"a {config.model_type!r} model cannot be written as ONNX; use {', '.join(ARCHITECTURES)}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        raise Refusal("a model with sliding-window layers cannot be written as ONNX; turn use_sliding_window off")
    _Decoder(model, config, file, quantized).save()


class _Decoder:
    """The nodes and weights of one decoder. A method adds nodes, and gives the name of the value that they compute."""

    def __init__(self, model: Path, config: Any, file: Path, quantized: bool):
        self.config, self.file, self.quantized = config, file, quantized
        self.weights = _Weights(model)
        self.data = file.with_name(f"{file.name}.data").open("wb")
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.heads = config.num_attention_heads
        self.kv_heads = getattr(config, "num_key_value_heads", None) or self.heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads

    def save(self) -> None:
        from onnx import TensorProto, helper, save

        def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        layers = range(self.config.num_hidden_layers)
        names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
        held = ("rows", self.kv_heads, "read", self.width)
        inputs = [
            value("input_ids", ("rows", "tokens"), TensorProto.INT64),
            value("num_logits_to_keep", (1,), TensorProto.INT64),
            *(value(f"past_key_values.{name}", held) for name in names),
        ]
        read = ("rows", self.kv_heads, "read_now", self.width)
        outputs = [value("logits", ("rows", "kept", self.config.vocab_size))]
        outputs += [value(f"present.{name}", read) for name in names]
        with self.data:
            self._count_tokens()
            if self.config.model_type in CONV1D_ARCHITECTURES:
                self._gpt2(layers)
            else:
                self._llama(layers)
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, list(self.initializers.values()))
        imports = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        save(helper.make_model(graph, opset_imports=imports, ir_version=10), self.file)

    def _count_tokens(self) -> None:
        """`total`: tokens that have been read with these; `last`: the place of the last of them, a row each."""
        import numpy as np

        shape = self.node("Shape", "input_ids")
        new = self.node("Gather", shape, self.constant("one", np.array(1)))
        before = self.node("Gather", self.node("Shape", "past_key_values.0.key"), self.constant("two", np.array(2)))
        self.total = self.node("Add", before, new)
        self.places = self.node("Range", before, self.total, self.constant("one", np.array(1)))
        self.total_32 = self.node("Cast", self.total, to=6)
        rows = self.node("Slice", shape, *(self.constant(f"at{n}", np.array([n])) for n in (0, 1)))
        last = self.node("Sub", self.total_32, self.constant("one_32", np.array(1, dtype=np.int32)))
        self.last = self.node("Expand", last, rows)

    def _llama(self, layers: range) -> None:
        """Llama, Qwen 2 (biases) and Qwen 3 (norms of queries and keys)."""
        self._rotation()
        hidden = self.embedded("model.embed_tokens.weight")
        for layer in layers:
            name = f"model.layers.{layer}"
            normed = self.rms_norm(hidden, f"{name}.input_layernorm.weight")
            parts = [self.linear(normed, f"{name}.self_attn.{part}_proj") for part in "qkv"]
            if self.config.model_type == "qwen3":
                parts[:2] = [self.head_norm(parts[n], f"{name}.self_attn.{'qk'[n]}_norm.weight") for n in (0, 1)]
            attended = self.linear(self.attention(layer, parts, self.rotation), f"{name}.self_attn.o_proj")
            hidden = self.node("Add", hidden, attended)
            normed = self.rms_norm(hidden, f"{name}.post_attention_layernorm.weight")
            gate, up = (self.linear(normed, f"{name}.mlp.{part}_proj") for part in ("gate", "up"))
            gate = self.node("Mul", gate, self.node("Sigmoid", gate))
            hidden = self.node("Add", hidden, self.linear(self.node("Mul", gate, up), f"{name}.mlp.down_proj"))
        self.head(self.rms_norm(hidden, "model.norm.weight"), "model.embed_tokens.weight")

    def _gpt2(self, layers: range) -> None:
        """GPT-2, whose Conv1D keeps its weights the other way round."""
        hidden = self.embedded("transformer.wte.weight")
        places = self.node("Gather", self.stored("transformer.wpe.weight"), self.places)
        hidden = self.node("Add", hidden, places)
        for layer in layers:
            name = f"transformer.h.{layer}"
            mixed = self.linear(self.layer_norm(hidden, f"{name}.ln_1"), f"{name}.attn.c_attn")
            parts = self.node("Split", mixed, axis=-1, num_outputs=3, outputs=3)
            hidden = self.node("Add", hidden, self.linear(self.attention(layer, parts), f"{name}.attn.c_proj"))
            wide = self.linear(self.layer_norm(hidden, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            wide = self.node("Gelu", wide, approximate="tanh")
            hidden = self.node("Add", hidden, self.linear(wide, f"{name}.mlp.c_proj"))
        self.head(self.layer_norm(hidden, "transformer.ln_f"), "transformer.wte.weight")

    def node(self, operation: str, *inputs: str, outputs: int | list[str] = 1, domain: str = "", **about: Any) -> Any:
        """A name, or a list of them where there are several outputs."""
        from onnx import helper

        number = len(self.nodes)
        made = outputs if isinstance(outputs, list) else [f"{operation}_{number}_{n}" for n in range(outputs)]
        self.nodes.append(
            helper.make_node(operation, list(inputs), made, f"{operation}_{number}", domain=domain, **about)
        )
        return made[0] if len(made) == 1 else made

    def constant(self, name: str, array: "np.ndarray[Any, Any]") -> str:
        """A weight, or a number; large ones stand in the file beside."""
        import numpy as np
        from onnx import TensorProto, helper, numpy_helper

        if name in self.initializers:
            return name
        if array.nbytes < IN_GRAPH:
            self.initializers[name] = numpy_helper.from_array(array, name)
            return name
        self.data.write(bytes(-self.data.tell() % ALIGNED))
        place = {"location": self.file.name + ".data", "offset": self.data.tell(), "length": array.nbytes}
        self.data.write(np.ascontiguousarray(array).data)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, told in place.items():
            tensor.external_data.add(key=key, value=str(told))
        self.initializers[name] = tensor
        return name

    def stored(self, name: str) -> str:
        """A weight as it is, in float32."""
        return name if name in self.initializers else self.constant(name, self.weights[name])

    def blocks(self, name: str, array: "np.ndarray[Any, Any] | None" = None) -> tuple[str, str]:
        """A matrix of rows of inputs as 8 bits, shape (outputs, inputs), and the scale of each `BLOCK` of a row."""
        import numpy as np

        codes, scales = f"{name}.codes", f"{name}.scales"
        if codes not in self.initializers:
            array = self.weights[name] if array is None else array
            if array.shape[1] % BLOCK:
                raise Refusal(f"{name} has rows of {array.shape[1]} weights; ONNX needs a multiple of {BLOCK}")
            blocked = array.reshape(len(array), -1, BLOCK)
            scale = np.abs(blocked).max(-1) / 127
            safe = np.where(scale > 0, scale, 1)[..., None]
            self.constant(codes, (np.rint(blocked / safe) + 128).astype(np.uint8).reshape(array.shape))
            self.constant(scales, scale.astype(np.float32))
        return codes, scales

    def embedded(self, name: str) -> str:
        if not self.quantized:
            return self.node("Gather", self.stored(name), "input_ids")
        codes, scales = self.blocks(name)
        about = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": 8}
        return self.node("GatherBlockQuantized", codes, "input_ids", scales, domain="com.microsoft", **about)

    def linear(self, hidden: str, name: str) -> str:
        """A Linear or Conv1D layer, its bias included where it has one."""
        weight = self.weights[f"{name}.weight"]
        weight = weight.T if self.config.model_type in CONV1D_ARCHITECTURES else weight
        bias = f"{name}.bias" if f"{name}.bias" in self.weights else None
        return self.product(hidden, f"{name}.weight", weight, self.stored(bias) if bias else "")

    def product(self, hidden: str, name: str, weight: "np.ndarray[Any, Any]", bias: str = "") -> str:
        import numpy as np

        outputs, inputs = weight.shape
        if not self.quantized:
            made = self.node("MatMul", hidden, self.constant(f"{name}.turned", np.ascontiguousarray(weight.T)))
            return self.node("Add", made, bias) if bias else made
        codes, scales = self.blocks(name, weight)
        shape = self.constant(f"{name}.shape", np.array([outputs, inputs // BLOCK, BLOCK]))
        given = [hidden, self.node("Reshape", codes, shape), scales, *(["", "", bias] if bias else [])]
        about = {"K": inputs, "N": outputs, "bits": 8, "block_size": BLOCK, "accuracy_level": ACTIVATIONS}
        return self.node("MatMulNBits", *given, domain="com.microsoft", **about)

    def head(self, hidden: str, embedding: str) -> None:
        """The logits of the last tokens; a tied head's weights are those of the embedding."""
        import numpy as np

        start = self.node("Neg", "num_logits_to_keep")
        end, axis = (self.constant(f"head_{n}", np.array([n])) for n in (np.iinfo(np.int64).max, 1))
        hidden = self.node("Slice", hidden, start, end, axis)
        name = "lm_head.weight" if "lm_head.weight" in self.weights else embedding
        made = self.product(hidden, name, self.weights[name])
        self.node("Identity", made, outputs=["logits"])

    def attention(self, layer: int, parts: list[str], rotation: tuple[str, ...] = ()) -> str:
        """Causal attention over what was read; a rotation turns queries and keys by their places."""
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        made = [f"attention_{layer}", *(f"present.{layer}.{part}" for part in ("key", "value"))]
        about = {"num_heads": self.heads, "kv_num_heads": self.kv_heads, "do_rotary": int(bool(rotation))}
        given = [*parts, *past, self.last, self.total_32, *rotation]
        self.node("GroupQueryAttention", *given, outputs=made, domain="com.microsoft", **about)
        return made[0]

    def rms_norm(self, hidden: str, name: str) -> str:
        return self.node("SimplifiedLayerNormalization", hidden, self.stored(name), epsilon=self.config.rms_norm_eps)

    def head_norm(self, hidden: str, name: str) -> str:
        """A norm of each head by itself."""
        import numpy as np

        apart = self.node("Reshape", hidden, self.constant("heads_apart", np.array([0, 0, -1, self.width])))
        normed = self.rms_norm(apart, name)
        return self.node("Reshape", normed, self.constant("heads_together", np.array([0, 0, -1])))

    def layer_norm(self, hidden: str, name: str) -> str:
        given = [self.stored(f"{name}.{part}") for part in ("weight", "bias")]
        return self.node("LayerNormalization", hidden, *given, epsilon=self.config.layer_norm_epsilon)

    def _rotation(self) -> None:
        """Cosine and sine by place, of shape (context, width / 2)."""
        import numpy as np

        frequencies = 1 / self.config.rope_parameters["rope_theta"] ** (np.arange(0, self.width, 2) / self.width)
        factors = rotary_factors(self.config, self.width)
        if factors is not None:
            frequencies = frequencies / factors
        angles = np.outer(np.arange(self.config.max_position_embeddings), frequencies)
        named = {"cosine": np.cos(angles), "sine": np.sin(angles)}
        self.rotation = tuple(self.constant(name, array.astype(np.float32)) for name, array in named.items())


class _Weights:
    """The weights of a saved model by name, read from the disk one at a time."""

    def __init__(self, model: Path):
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for file in sorted(model.glob("*.safetensors")):
            opened: Any = safe_open(file, "pt")
            self._files |= dict.fromkeys(opened.keys(), opened)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> "np.ndarray[Any, Any]":
        array: np.ndarray[Any, Any] = self._files[name].get_tensor(name).float().numpy()
        return array
