"""Tiny random rerankers that are language models, with tokenizers of the kinds that the real ones have."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from FlagEmbedding.inference.reranker.decoder_only.models import modeling_minicpm_reranker as minicpm
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.model_folders import edit
from workers.doctor.reranker_pages import Page, mend_layerwise, open_page
from workers.models.folders.pair_template import TEMPLATES

__all__ = ["LAYERWISE", "RERANKERS", "make_llm_reranker", "make_tokenizer", "open_reference"]

LAYERWISE = "bge-reranker-v2-minicpm-layerwise"

# As Qwen's tokenizers split texts.
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 1024,
    # A wide start makes random models react to their input.
    "initializer_range": 0.12,
}
_CONFIGS = {
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 64, "final_logit_softcapping": 1.0}),
}
# What a card says of each: its architecture, class and template.
RERANKERS = {
    "qwen3-reranker": ("qwen3", "AutoModelForCausalLM", "qwen3-reranker"),
    "qwen3-reranker-seq-cls": ("qwen3", "AutoModelForSequenceClassification", "qwen3-reranker"),
    "mxbai-rerank-v2": ("qwen2", "AutoModelForCausalLM", "mxbai-rerank-v2"),
    "bge-reranker-v2-gemma": ("gemma", "AutoModelForCausalLM", "bge-reranker-v2"),
    "with-a-softcap": ("gemma2", "AutoModelForCausalLM", "bge-reranker-v2"),
}


def make_llm_reranker(kind: str, folder: Path) -> dict[str, Any]:
    """Write a checkpoint and return the fields that its card needs."""
    torch.manual_seed(0)
    if kind == LAYERWISE:
        return _make_layerwise(folder)
    architecture, auto, template = RERANKERS[kind]
    tokenizer = make_tokenizer(architecture)
    tokenizer.save_pretrained(folder)
    config_class, fields = _CONFIGS[architecture]
    labels = {"num_labels": 1} if "SequenceClassification" in auto else {}
    config = getattr(transformers, config_class)(**_SHAPE, **_ids(tokenizer), **fields, **labels)
    _save(getattr(transformers, auto).from_config(config), folder)
    return {"template": template}


def open_reference(kind: str, folder: Path) -> Page:
    """Load a checkpoint that was written here as its authors do."""
    head = "layers" if kind == LAYERWISE else "label" if kind.endswith("seq-cls") else "logits"
    return open_page("bge-reranker-v2" if kind == LAYERWISE else RERANKERS[kind][2], head, folder, "cpu")


def _make_layerwise(folder: Path) -> dict[str, Any]:
    mend_layerwise()
    tokenizer = make_tokenizer("minicpm")
    tokenizer.save_pretrained(folder)
    heads = {"start_layer": 2, "head_multi": True, "head_type": "simple"}
    scales = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}
    config = minicpm.LayerWiseMiniCPMConfig(**_SHAPE, **_ids(tokenizer), **heads, **scales)
    _save(minicpm.LayerWiseMiniCPMForCausalLM(config), folder)
    # As the real folder has it, which brings the same code along.
    code = {"AutoConfig": "configuration_minicpm_reranker.LayerWiseMiniCPMConfig"}
    edit(folder / "config.json", auto_map=code, rope_parameters=None, rope_scaling=None)
    return {}


def _save(model: Any, folder: Path) -> None:
    # Norms start as ones, which would hide that they are left out.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def make_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the templates and some texts."""
    texts = [json.dumps([template.query, template.suffix, template.document]) for template in TEMPLATES.values()]
    texts += ["yes no Yes No 0 1 the quick brown fox jumps over a lazy dog"] * 20
    made = _byte_pairs(texts) if architecture.startswith("qwen") else _sentence_pieces(texts, architecture)
    made.model_max_length = 1024
    return made


def _byte_pairs(texts: list[str]) -> PreTrainedTokenizerFast:
    fast = Tokenizer(models.BPE())
    fast.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated")
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet))
    fast.add_special_tokens([AddedToken(one, special=True) for one in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    fast.add_tokens([AddedToken(one, special=False) for one in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<|endoftext|>", eos_token="<|im_end|>")


def _sentence_pieces(texts: list[str], architecture: str) -> PreTrainedTokenizerFast:
    """Return one like Gemma's, or like Llama's, which puts a space before each text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    if architecture == "minicpm":
        special = ["<unk>", "<s>", "</s>"]
    fast = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "\u2581")]
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if len(special) == 3 else steps)
    fast.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    fast.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=900, special_tokens=[*special, *tokens]))
    named = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=False))
    if len(special) == 4:
        named = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=fast, **{"pad_token": "</s>"} | named)
