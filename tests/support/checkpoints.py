"""Tiny random checkpoints of each model family, written as their real ones are, to be loaded by the real code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

__all__ = ["ARCHITECTURES", "FAMILIES", "WORDS", "make_checkpoint", "make_tokenizer"]

WORDS = [f"w{at}" for at in range(300)]
_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
_XLMR = {"max_position_embeddings": 130, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
FAMILIES = ("bert", "xlmr-reranker", "bert-reranker", "bge-m3", "qwen3")
# Those and more architectures of the same families.
ARCHITECTURES = (*FAMILIES, "bert-mean", "roberta", "modernbert", "modernbert-mean", "modernbert-reranker", "qwen2")


def make_checkpoint(family: str, folder: Path) -> dict[str, Any]:
    """Write a checkpoint and return the fields of a card for it."""
    torch.manual_seed(0)
    like = {"qwen2": "bytes", "bge-m3": "xlmr", "roberta": "xlmr"}
    tokenizer = make_tokenizer(like.get(family, family.partition("-")[0]))
    tokenizer.save_pretrained(folder)
    _model(family, len(tokenizer)).save_pretrained(folder)
    if family == "bge-m3":
        torch.save(torch.nn.Linear(64, 64).state_dict(), folder / "colbert_linear.pt")
        torch.save(torch.nn.Linear(64, 1).state_dict(), folder / "sparse_linear.pt")
    return {"name": family, "source": f"path:{folder}", "max_tokens": 128, **_fields(family)}


def _fields(family: str) -> dict[str, Any]:
    if family.endswith("reranker"):
        return {"family": "cross-encoder", "capabilities": ("rerank",), "rerank_by": "cross-encoder"}
    dense: dict[str, Any] = {"capabilities": ("dense", "rerank"), "rerank_by": "similarity", "dimension": 64}
    if family == "bge-m3":
        dense["capabilities"] = ("dense", "sparse", "colbert", "rerank")
    kind = {"bge-m3": "bge-m3", "qwen2": "decoder", "qwen3": "decoder"}.get(family, "encoder")
    pooling = "last_token" if kind == "decoder" else "mean" if family.endswith("mean") else "cls"
    return {"family": kind, "pooling": pooling, **dense}


def _model(family: str, size: int) -> Any:
    # A wide start makes random models react to their input; with the usual 0.02 all texts look alike.
    shape: dict[str, Any] = {**_SHAPE, "vocab_size": size, "initializer_range": 0.3}
    short = {**shape, "max_position_embeddings": 128}
    xlmr = {**shape, **_XLMR}
    qwen = {**shape, "num_key_value_heads": 2, "max_position_embeddings": 512, "eos_token_id": 1, "pad_token_id": 0}
    if family.startswith("modernbert"):
        return _modernbert(family, short)
    makers: dict[str, Callable[[], Any]] = {
        "bert": lambda: BertModel(BertConfig(**short)),
        "bert-mean": lambda: BertModel(BertConfig(**short)),
        "bert-reranker": lambda: BertForSequenceClassification(BertConfig(**short, num_labels=1)),
        "xlmr-reranker": lambda: XLMRobertaForSequenceClassification(XLMRobertaConfig(**xlmr, num_labels=1)),
        "bge-m3": lambda: XLMRobertaModel(XLMRobertaConfig(**xlmr)),
        "roberta": lambda: RobertaModel(RobertaConfig(**xlmr)),
        "qwen2": lambda: Qwen2Model(Qwen2Config(**qwen)),
        "qwen3": lambda: Qwen3Model(Qwen3Config(**qwen, head_dim=16)),
    }
    return makers[family]()


def _modernbert(family: str, shape: dict[str, Any]) -> Any:
    # Five layers: the second, third and fifth see five tokens to each side; in the other model the last sees all.
    ids = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    layers = 4 if family == "modernbert" else 5
    config = ModernBertConfig(
        **{**shape, "num_hidden_layers": layers, "initializer_range": 0.4}, **ids, local_attention=10, num_labels=1
    )
    if family == "modernbert-reranker":
        config.classifier_pooling = "mean"
        return ModernBertForSequenceClassification(config)
    return ModernBertModel(config)


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words, framed as those of bert, modernbert, xlmr or qwen3 are."""
    if kind == "bytes":
        return _byte_tokenizer()
    special = {
        "bert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        "modernbert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        "xlmr": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
        "qwen3": {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"},
    }[kind]
    vocabulary = {word: at for at, word in enumerate([*special.values(), *WORDS])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = {
        "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "xlmr": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "modernbert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]"),
        "qwen3": ("$A <end>", "$A $B:1 <end>:1"),
    }[kind]
    used = [(token, at) for token, at in vocabulary.items() if token in single.split()]
    fast.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    if kind == "xlmr":
        special |= {"cls_token": "<s>", "sep_token": "</s>"}
    names = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_input_names=names, **special)


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return one of bytes: the classes of some families make byte pairs of any vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<|endoftext|>", *alphabet])}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<|endoftext|>", eos_token="<|endoftext|>")
