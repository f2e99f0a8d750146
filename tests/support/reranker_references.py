"""What the authors' own code gives for pairs: the references of rerankers that are language models."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from FlagEmbedding import FlagLLMReranker, LayerWiseFlagLLMReranker
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["LAYERWISE", "REFERENCES", "Pairs", "score_as_layerwise"]

LAYERWISE = "bge-reranker-v2-minicpm-layerwise"
Pairs = list[tuple[str, str]]


def read_last_logits(folder: Path, rows: list[list[int]]) -> torch.Tensor:
    """Return the logits of all words at the end of each row, padded on the left as the authors' code does."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt")).logits[:, -1]


def score_as_qwen(folder: Path, pairs: Pairs, instruction: str | None) -> NDArray[np.float32]:
    """The code on the page of Qwen3-Reranker."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before = tokenizer.encode(prefix, add_special_tokens=False)
    after = tokenizer.encode(suffix, add_special_tokens=False)
    texts = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    rows = [before + ids + after for ids in tokenizer(texts)["input_ids"]]
    no, yes = tokenizer.convert_tokens_to_ids(["no", "yes"])
    logits = read_last_logits(folder, rows)
    return torch.stack([logits[:, no], logits[:, yes]], 1).log_softmax(1)[:, 1].exp().numpy()


def score_as_classifier(folder: Path, pairs: Pairs, instruction: str | None) -> NDArray[np.float32]:
    """The code on the page of Qwen3-Reranker-0.6B-seq-cls."""
    task = instruction or "Given a web search query, retrieve relevant passages that answer the query"
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    texts = [
        (f"{prefix}<Instruct>: {task}\n<Query>: {query}\n", f"<Document>: {document}{suffix}")
        for query, document in pairs
    ]
    return np.asarray(CrossEncoder(str(folder), device="cpu").predict(texts))


def score_as_mxbai(folder: Path, pairs: Pairs, instruction: str | None) -> NDArray[np.float32]:
    """What mxbai_rerank.MxbaiRerankV2 of the package mxbai-rerank puts together."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    task = (
        "You are a search relevance expert who evaluates how well documents match search queries. For each "
        "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
        "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    )
    system = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    before = ids(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n")
    rest = ids("\n") + ids(task) + ids("<|im_end|>\n<|im_start|>assistant\n")
    ask = f"instruction: {instruction}\n" if instruction else ""
    rows = [before + ids(f"{ask}query: {q}") + ids("\n") + ids(f"document: {d}") + rest for q, d in pairs]
    logits = read_last_logits(folder, rows)
    return torch.sigmoid(logits[:, ids("1")[0]] - logits[:, ids("0")[0]]).numpy()


def score_as_flag(folder: Path, pairs: Pairs, instruction: str | None) -> NDArray[np.float32]:
    reranker = FlagLLMReranker(str(folder), devices="cpu", max_length=1024, normalize=True, prompt=instruction)
    return np.asarray(reranker.compute_score(pairs))


def score_as_layerwise(
    folder: Path, pairs: Pairs, instruction: str | None, layer: int | None = None
) -> NDArray[np.float32]:
    # On a CPU it computes in float32 all the same.
    options = {"devices": "cpu", "max_length": 1024, "normalize": True, "use_fp16": True}
    reranker = LayerWiseFlagLLMReranker(str(folder), prompt=instruction, **options)
    # Its cache is of a form that transformers does not have any more, its angles are lost where weights are loaded.
    reranker.model.config.use_cache = False
    for block in reranker.model.model.layers:
        block.self_attn._init_rope()
    return np.asarray(reranker.compute_score(pairs, cutoff_layers=None if layer is None else [layer]))


REFERENCES: dict[str, Callable[[Path, Pairs, str | None], NDArray[np.float32]]] = {
    "qwen3-reranker": score_as_qwen,
    "qwen3-reranker-seq-cls": score_as_classifier,
    "mxbai-rerank-v2": score_as_mxbai,
    "bge-reranker-v2-gemma": score_as_flag,
    "with-a-softcap": score_as_flag,
    LAYERWISE: score_as_layerwise,
}
