"""Tiny random folders of models that give sparse weights or a vector for each token."""

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from sentence_transformers.sparse_encoder.modules import SpladePooling
from transformers import AutoModel, AutoTokenizer

from tests.support.model_folders import edit, make_bare

__all__ = ["make_colbert", "make_pylate", "make_splade"]


def make_splade(folder: Path, family: str = "bert", **pooling: Any) -> None:
    bare = folder.with_name("bare")
    make_bare(family, bare, "AutoModelForMaskedLM")
    modules = [Transformer(str(bare), transformer_task="fill-mask"), SpladePooling(**pooling)]
    prompts = {"query": "w1 ", "document": ""}
    SparseEncoder(modules=modules, device="cpu", prompts=prompts).save_pretrained(str(folder))


def make_colbert(folder: Path, family: str = "bert", skip: list[str] | None = None, **knobs: Any) -> None:
    """Write a folder as sentence-transformers does."""
    bare = folder.with_name(f"{folder.name}-bare")
    make_bare(family, bare)
    tokens = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    identity = torch.nn.Identity()
    modules = [
        Transformer(str(bare), **knobs),
        Dense(64, 16, bias=False, activation_function=identity, **tokens),
        MultiVectorMask(skiplist_words=skip),
        Normalize(module_input_name="token_embeddings"),
    ]
    prompts = {"query": "w1 ", "document": "w2 "}
    MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts).save_pretrained(str(folder))


def make_pylate(folder: Path, family: str = "bert", **knobs: Any) -> None:
    """Write a folder as PyLate did: two modules, and its settings at the top; markers are tokens of their own."""
    make_colbert(folder, family)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit(folder / "1_Dense/config.json", module_input_name=None, module_output_name=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    stated = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 20, "document_length": 40, **knobs}
    edit(folder / "config_sentence_transformers.json", model_type="ColBERT", prompts={}, **stated)
