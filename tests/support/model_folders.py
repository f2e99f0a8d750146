"""Tiny random model folders of many kinds, written by transformers and sentence-transformers, as real ones are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Normalize, Pooling

from tests.support.checkpoints import make_tokenizer

__all__ = ["ENCODERS", "edit", "make_bare", "make_cross_encoder", "make_sentence_folder", "sentence_modules"]

_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
# A wide start makes random models react to their input; with the usual 0.02 all texts look alike.
_WIDE = {"initializer_range": 0.3}
_LIKE_ROBERTA = {
    "max_position_embeddings": 130,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_DECODER = {
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}
_SPECIAL = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}

# Kind of tokenizer, configuration class and what it is made with.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "BertConfig", {"max_position_embeddings": 128}),
    "electra": ("bert", "ElectraConfig", {"max_position_embeddings": 128, "embedding_size": 32}),
    "albert": ("bert", "AlbertConfig", {"max_position_embeddings": 128, "embedding_size": 32}),
    "roberta": ("xlmr", "RobertaConfig", _LIKE_ROBERTA),
    "xlm-roberta": ("xlmr", "XLMRobertaConfig", _LIKE_ROBERTA),
    "camembert": ("xlmr", "CamembertConfig", _LIKE_ROBERTA),
    "mpnet": ("xlmr", "MPNetConfig", {k: v for k, v in _LIKE_ROBERTA.items() if k != "type_vocab_size"}),
    "deberta-v2": (
        "bert",
        "DebertaV2Config",
        {
            "max_position_embeddings": 128,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 32,
            "position_biased_input": False,
        },
    ),
    "distilbert": ("bert", "DistilBertConfig", {"max_position_embeddings": 128}),
    "modernbert": (
        "bert",
        "ModernBertConfig",
        {"max_position_embeddings": 256, "local_attention": 16, "global_attn_every_n_layers": 2, **_SPECIAL},
    ),
    "nomic_bert": ("bert", "NomicBertConfig", {"max_position_embeddings": 128, "head_dim": 16}),
    "gte": ("xlmr", "GteConfig", {**_LIKE_ROBERTA, "rope_parameters": {"rope_type": "default", "rope_theta": 160_000}}),
    "eurobert": ("bert", "EuroBertConfig", {**_DECODER, **_SPECIAL}),
    "qwen2": ("bytes", "Qwen2Config", _DECODER),
    "qwen2-bidirectional": ("bytes", "Qwen2Config", {**_DECODER, "is_causal": False}),
    "qwen3": ("qwen3", "Qwen3Config", _DECODER),
    "llama": ("qwen3", "LlamaConfig", _DECODER),
    "mistral": ("qwen3", "MistralConfig", {**_DECODER, "sliding_window": 16}),
    # Not the usual quarter; with the class's default of 1, random weights magnify the steps of half precision.
    "granite": ("qwen3", "GraniteConfig", {**_DECODER, "attention_multiplier": 0.2}),
    "gemma2": ("qwen3", "Gemma2Config", {**_DECODER, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    "gemma3": ("qwen3", "Gemma3TextConfig", {**_DECODER, "sliding_window": 16, "query_pre_attn_scalar": 16}),
    "gemma3-bidirectional": (
        "qwen3",
        "Gemma3TextConfig",
        {**_DECODER, "sliding_window": 16, "query_pre_attn_scalar": 16, "use_bidirectional_attention": True},
    ),
}


def make_bare(family: str, folder: Path, auto: str = "AutoModel", **more: Any) -> None:
    """Write a transformers folder: configuration, weights, tokenizer."""
    torch.manual_seed(0)
    kind, config_class, fields = ENCODERS[family]
    tokenizer = make_tokenizer(kind)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    config = getattr(transformers, config_class)(**{**_SHAPE, **_WIDE, "vocab_size": len(tokenizer), **fields, **more})
    model = getattr(transformers, auto).from_config(config)
    # Norms and biases start as ones and zeros, which would hide that they are left out.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def make_sentence_folder(
    family: str, folder: Path, pooling: str | list[str] = "mean", *after: torch.nn.Module, **more: Any
) -> None:
    """Write a sentence-transformers folder: transformer, pooling and what follows."""
    bare = folder.with_name(f"{folder.name}-bare")
    make_bare(family, bare)
    transformer = Transformer(str(bare))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling), *after]
    SentenceTransformer(modules=modules, device="cpu", **more).save(str(folder), create_model_card=False)
    shutil.rmtree(bare)


def make_cross_encoder(family: str, folder: Path, labels: int = 1, **more: Any) -> None:
    """Write a cross-encoder's folder."""
    bare = folder.with_name(f"{folder.name}-bare")
    make_bare(family, bare, "AutoModelForSequenceClassification", num_labels=labels)
    CrossEncoder(str(bare), device="cpu", **more).save_pretrained(str(folder))
    shutil.rmtree(bare)


def sentence_modules() -> dict[str, Callable[[], list[torch.nn.Module]]]:
    """Return lists of modules that may follow a pooling of 64 numbers."""
    torch.manual_seed(1)
    identity, relu = torch.nn.Identity(), torch.nn.ReLU()
    return {
        "normalize": lambda: [Normalize()],
        "dense": lambda: [Dense(64, 32)],
        "dense-identity-normalize": lambda: [Dense(64, 48, activation_function=identity), Normalize()],
        "dense-without-bias": lambda: [Dense(64, 32, bias=False, activation_function=identity)],
        "dense-relu": lambda: [Dense(64, 96, activation_function=relu)],
        "dense-residual": lambda: [Dense(64, 64, use_residual=True)],
        "dense-residual-projected": lambda: [Dense(64, 24, use_residual=True)],
        "two-dense-normalize": lambda: [
            Dense(64, 128, bias=False, activation_function=identity),
            Dense(128, 64, bias=False, activation_function=identity),
            Normalize(),
        ],
        "normalize-dense": lambda: [Normalize(), Dense(64, 32)],
        "layer-norm": lambda: [LayerNorm(64)],
        "dropout": lambda: [Dropout(0.5), Normalize()],
    }


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON object; None removes one."""
    whole = json.loads(path.read_text("utf-8")) | fields
    path.write_text(json.dumps({key: value for key, value in whole.items() if value is not None}), "utf-8")
