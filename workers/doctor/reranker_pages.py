"""What the authors of rerankers that are language models compute, by the code on their pages or in their package.

Owns these calculations: pairs are written, padded and scored here without our templates, tokenizers and modules, so
that both can be held against each other. FlagEmbedding's classes are the reference of its own models.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.errors import ConfigError

__all__ = ["Page", "mend_layerwise", "open_page"]

Pairs = Sequence[tuple[str, str]]
_Write = Callable[[Any, Pairs, str | None], list[list[int]]]

_BATCH = 8
_QWEN_TASK = "Given a web search query, retrieve relevant passages that answer the query"
_QWEN_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_QWEN_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MXBAI_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
_MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide your binary "
    "relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
)


class Page(Protocol):
    """From pairs to scores in [0, 1]."""

    def __call__(self, pairs: Pairs, instruction: str | None = None, layer: int | None = None) -> NDArray[np.float32]:
        """Score pairs; without an instruction by the page's own, without a layer after the last."""
        ...


def open_page(template: str, head: str, folder: Path, device: str) -> Page:
    """Load a reranker as its authors do, in float32.

    Args:
        template: a name of `workers.models.folders.pair_template.TEMPLATES`.
        head: `logits`, `label` or `layers`, see `PairReading`.
        folder: the model.
        device: of torch.

    Raises:
        ConfigError: no page and no package says how it is computed.
    """
    if template == "qwen3-reranker":
        return _open_classifier(folder, device) if head == "label" else _open_words(folder, device, _write_as_qwen)
    if template == "mxbai-rerank-v2" and head == "logits":
        return _open_words(folder, device, _write_as_mxbai)
    if template == "bge-reranker-v2" and head in {"logits", "layers"}:
        return _open_flag(folder, device, layerwise=head == "layers")
    raise ConfigError(f"no page and no package says how {template} is computed with the head {head}")


def _open_words(folder: Path, device: str, write: _Write) -> Page:
    """Score by the logits of two words at the end of each row, padded on the left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 - seconds

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    model.to(device).eval()
    words = ("no", "yes") if write is _write_as_qwen else ("0", "1")
    no, yes = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words)

    def score(pairs: Pairs, instruction: str | None = None, layer: int | None = None) -> NDArray[np.float32]:
        _refuse_layer(layer)
        rows, found = write(tokenizer, pairs, instruction), []
        for part in _parts(rows):
            inputs = tokenizer.pad({"input_ids": part}, return_tensors="pt").to(device)
            with torch.inference_mode():
                logits = model(**inputs).logits[:, -1]
            found.append(torch.stack([logits[:, no], logits[:, yes]], 1).log_softmax(1)[:, 1].exp().cpu().numpy())
        return np.concatenate(found)

    return score


def _write_as_qwen(tokenizer: Any, pairs: Pairs, instruction: str | None) -> list[list[int]]:
    """Return what the page of Qwen3-Reranker puts together."""
    before = tokenizer.encode(_QWEN_PREFIX, add_special_tokens=False)
    after = tokenizer.encode(_QWEN_SUFFIX, add_special_tokens=False)
    task = instruction or _QWEN_TASK
    texts = [f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}" for query, document in pairs]
    return [before + ids + after for ids in tokenizer(texts)["input_ids"]]


def _write_as_mxbai(tokenizer: Any, pairs: Pairs, instruction: str | None) -> list[list[int]]:
    """Return what mxbai_rerank.MxbaiRerankV2 of the package mxbai-rerank puts together."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = ids(f"<|im_start|>system\n{_MXBAI_SYSTEM}<|im_end|>\n<|im_start|>user\n")
    rest = ids("\n") + ids(_MXBAI_TASK) + ids("<|im_end|>\n<|im_start|>assistant\n")
    ask = f"instruction: {instruction}\n" if instruction else ""
    return [before + ids(f"{ask}query: {q}") + ids("\n") + ids(f"document: {d}") + rest for q, d in pairs]


def _open_classifier(folder: Path, device: str) -> Page:
    """Score as the page of Qwen3-Reranker-0.6B-seq-cls does."""
    from sentence_transformers import CrossEncoder  # noqa: PLC0415 - seconds

    model = CrossEncoder(
        str(folder), device=device, model_kwargs={"dtype": torch.float32}, activation_fn=torch.nn.Sigmoid()
    )

    def score(pairs: Pairs, instruction: str | None = None, layer: int | None = None) -> NDArray[np.float32]:
        _refuse_layer(layer)
        before = f"{_QWEN_PREFIX}<Instruct>: {instruction or _QWEN_TASK}\n"
        texts = [(f"{before}<Query>: {q}\n", f"<Document>: {d}{_QWEN_SUFFIX}") for q, d in pairs]
        return np.asarray(model.predict(texts, batch_size=_BATCH, show_progress_bar=False), np.float32)

    return score


def _open_flag(folder: Path, device: str, *, layerwise: bool) -> Page:
    """Score by FlagEmbedding's classes; the layerwise one after its last layer."""
    from FlagEmbedding import FlagLLMReranker, LayerWiseFlagLLMReranker  # noqa: PLC0415 - seconds

    options: dict[str, Any] = {"devices": device, "max_length": 1024, "normalize": True}
    if layerwise:
        mend_layerwise()
        # On a CPU it computes in float32 all the same.
        model: Any = LayerWiseFlagLLMReranker(str(folder), use_fp16=device == "cpu", **options)
        # Its cache is of a form that transformers does not have any more, its angles are lost as weights are loaded.
        model.model.config.use_cache = False
        for block in model.model.model.layers:
            block.self_attn._init_rope()  # noqa: SLF001 - the only way to make them again
    else:
        model = FlagLLMReranker(str(folder), use_fp16=False, **options)

    def score(pairs: Pairs, instruction: str | None = None, layer: int | None = None) -> NDArray[np.float32]:
        more: dict[str, Any] = {"prompt": instruction} if instruction else {}
        if layer is not None:
            more["cutoff_layers"] = [layer]
        return np.asarray(model.compute_score(list(pairs), **more), np.float32)

    return score


def mend_layerwise() -> None:
    """Make FlagEmbedding's class load with current transformers, where it gets another form of two settings."""
    from FlagEmbedding.inference.reranker.decoder_only.models import (  # noqa: PLC0415 - seconds
        modeling_minicpm_reranker as minicpm,
    )

    def init_rope(self: Any) -> None:
        base = self.rope_theta if isinstance(self.rope_theta, int | float) else 10_000
        self.rotary_emb = minicpm.MiniCPMRotaryEmbedding(self.head_dim, self.max_position_embeddings, base)

    for kind, name, value in (
        (minicpm.MiniCPMAttention, "_init_rope", init_rope),
        (minicpm.LayerWiseMiniCPMForCausalLM, "_tied_weights_keys", {}),
    ):
        setattr(kind, name, value)


def _refuse_layer(layer: int | None) -> None:
    if layer is not None:
        raise ConfigError("it scores after its last layer only")


def _parts(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    return (rows[at : at + _BATCH] for at in range(0, len(rows), _BATCH))
