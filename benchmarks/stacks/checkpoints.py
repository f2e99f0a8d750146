"""Random checkpoints in the shapes of larger models: `python -m benchmarks.stacks.checkpoints SHAPE FOLDER`.

Owns the shapes and the files of a checkpoint; what random weights compute is worth nothing, how long it takes is what
the real ones take. Runs in a process of its own, so that the benchmark itself stays free of torch.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.corpus import gather, model_folder
from benchmarks.stacks.processes import BUILD

__all__ = ["GPU_SHAPES", "SHAPES", "TINY_SHAPES", "Shape", "make"]

_XLM_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
_MAX_TOKENS = 512
_SEED = 20_261_121


@dataclass(frozen=True, slots=True)
class Shape:
    """One architecture: whose it is, what FlagEmbedding calls its family, and its sizes."""

    name: str
    family: Literal["encoder", "bge-m3", "cross-encoder", "decoder"]
    kind: Literal["bert", "xlm-roberta", "qwen3"]
    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    positions: int
    # Of decoders alone.
    key_heads: int = 0
    head_size: int = 0


SHAPES = (
    Shape("bge-base-shaped", "encoder", "bert", 12, 768, 3072, 12, 30_522, 512),
    Shape("bge-m3-shaped", "bge-m3", "xlm-roberta", 24, 1024, 4096, 16, 250_002, 8194),
    Shape("bge-reranker-base-shaped", "cross-encoder", "xlm-roberta", 12, 768, 3072, 12, 250_002, 514),
)
# What the suites for GPUs measure, and the same families small enough to try those suites out on a CPU.
GPU_SHAPES = (
    *SHAPES[:2],
    Shape("bge-reranker-v2-m3-shaped", "cross-encoder", "xlm-roberta", 24, 1024, 4096, 16, 250_002, 8194),
    Shape("qwen3-0.6b-shaped", "decoder", "qwen3", 28, 1024, 3072, 16, 151_669, 32_768, key_heads=8, head_size=128),
)
TINY_SHAPES = (
    Shape("tiny-base-shaped", "encoder", "bert", 2, 64, 128, 4, 30_522, 512),
    Shape("tiny-m3-shaped", "bge-m3", "xlm-roberta", 2, 64, 128, 4, 20_000, 8194),
    Shape("tiny-reranker-shaped", "cross-encoder", "xlm-roberta", 2, 64, 128, 4, 20_000, 8194),
    Shape("tiny-qwen3-shaped", "decoder", "qwen3", 2, 64, 128, 4, 20_000, 1024, key_heads=2, head_size=16),
)
_ALL = {shape.name: shape for shape in (*SHAPES, *GPU_SHAPES, *TINY_SHAPES)}


def make(shape: Shape) -> Path:
    """Return the folder of a checkpoint, written first if it is not there; it is kept below `build/`.

    Raises:
        RuntimeError: it cannot be written; the message holds the end of what the process said.
    """
    folder = (BUILD / "models" / shape.name).absolute()
    if not (folder / ".made").exists():
        command = [sys.executable, "-m", "benchmarks.stacks.checkpoints", shape.name, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"no checkpoint {shape.name}: {done.stderr[-1000:]}")
    return folder


def _write(shape: Shape, folder: Path) -> None:
    """Write weights, tokenizer and, for embedders, what sentence-transformers wants to know."""
    import torch  # noqa: PLC0415 - only this process needs it

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(_SEED)
    _model(shape).save_pretrained(folder)
    if shape.kind == "bert":
        _copy_bert_tokenizer(folder)
    else:
        _train_tokenizer(folder, frame="$A </s>" if shape.kind == "qwen3" else "<s> $A </s>")
    if shape.family != "cross-encoder":
        _write_pooling(shape, folder)
    if shape.family == "bge-m3":
        torch.save(torch.nn.Linear(shape.hidden, shape.hidden).state_dict(), folder / "colbert_linear.pt")
        torch.save(torch.nn.Linear(shape.hidden, 1).state_dict(), folder / "sparse_linear.pt")
    (folder / ".made").touch()


def _model(shape: Shape) -> Any:
    import transformers  # noqa: PLC0415 - only this process needs it

    sizes = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.positions,
    }
    if shape.kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes))
    if shape.kind == "qwen3":
        more = {"num_key_value_heads": shape.key_heads, "head_dim": shape.head_size, "tie_word_embeddings": True}
        ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        return transformers.Qwen3Model(transformers.Qwen3Config(**sizes, **more, **ids))
    config = transformers.XLMRobertaConfig(
        **sizes, type_vocab_size=1, num_labels=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, layer_norm_eps=1e-5
    )
    if shape.family == "cross-encoder":
        return transformers.XLMRobertaForSequenceClassification(config)
    return transformers.XLMRobertaModel(config)


def _copy_bert_tokenizer(folder: Path) -> None:
    """MiniLM has the vocabulary of BERT: take its tokenizer, with BERT's length."""
    for name in ("tokenizer.json", "vocab.txt", "special_tokens_map.json", "tokenizer_config.json"):
        shutil.copy(model_folder() / name, folder / name)


def _train_tokenizer(folder: Path, frame: str) -> None:
    """Train a small unigram vocabulary on our own text: those of XLM-R and Qwen cannot be had offline.

    It is smaller than the embedding table, which costs nothing: a row that no text uses is never read.
    """
    import tokenizers  # noqa: PLC0415 - only this process needs them
    import transformers  # noqa: PLC0415

    text = gather(6000).passages
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    tokenizer.normalizer = tokenizers.normalizers.NFKC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=16_000, special_tokens=_XLM_SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=frame, pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=_MAX_TOKENS,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def _write_pooling(shape: Shape, folder: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": _MAX_TOKENS}))
    (folder / "1_Pooling").mkdir()
    mode = "pooling_mode_lasttoken" if shape.family == "decoder" else "pooling_mode_cls_token"
    pooling = {"word_embedding_dimension": shape.hidden, mode: True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


if __name__ == "__main__":
    _write(_ALL[sys.argv[1]], Path(sys.argv[2]))
