"""A sentence encoder small enough to be worked out by hand, as the files that a real one comes in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

WORDS = ("[PAD]", "[UNK]", "red", "shoes", "green", "tea", "cheap")
DIMENSION = 6


def word_vectors() -> NDArray[np.float32]:
    """float32[words, 6]: what the model knows of each word; padding has numbers that must never count."""
    vectors = np.random.default_rng(5).normal(size=(len(WORDS), DIMENSION)).astype(np.float32)
    vectors[0] = 100.0
    return vectors


def write_encoder(folder: Path, *, pooled: bool = False) -> tuple[Path, Path]:
    """(model, tokenizer): a vector for each word, or, `pooled`, the largest numbers of a text's words."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = folder / "model.onnx", folder / "tokenizer.json"
    nodes = [helper.make_node("Gather", ["words", "input_ids"], ["each"])]
    shape: list[str | int] = ["n", "t", DIMENSION]
    if pooled:
        nodes.append(helper.make_node("ReduceMax", ["each", "axes"], ["text"], keepdims=0))
        shape = ["n", DIMENSION]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(word_vectors(), "words"),
            *([numpy_helper.from_array(np.array([1], np.int64), "axes")] if pooled else []),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(made)
    save(made, str(model))
    reader = Tokenizer(WordLevel({word: code for code, word in enumerate(WORDS)}, unk_token="[UNK]"))
    reader.pre_tokenizer = Whitespace()
    reader.save(str(tokenizer))
    return model, tokenizer
