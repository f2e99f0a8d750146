"""Exports one model to OpenVINO's format: `python -m workers.models.export <card as JSON> <folder> <target>`.

Owns what goes into a folder of the cache. Runs in a process of its own, so that a worker which serves by OpenVINO
never holds torch, FlagEmbedding and a second copy of the weights: about half a gigabyte.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from config.catalog import ModelCard
from tasks.errors import ConfigError, WorkError
from workers.models.folders.recognise import recognise
from workers.models.weights import Weights, load_weights

__all__ = ["EXIT_REFUSED", "MODEL", "TOKENIZER", "TRAITS", "export", "import_openvino"]

MODEL, TOKENIZER, TRAITS = "model.xml", "tokenizer.json", "traits.json"
# The model itself is bad, and not only its export: no other backend is to be tried.
EXIT_REFUSED = 78
# Shapes in which the exported model is held against the original: rows, tokens of the longest row.
_CHECKED = ((1, 2), (2, 7), (3, 19), (1, 40), (5, 33))
_LEAST_COSINE, _MOST_DIFFERENCE = 0.9999, 1e-3


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry package, which would report each conversion; it does without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes an import fail
    import openvino  # noqa: PLC0415 - only workers that serve by it pay for it

    return openvino


def export(card: ModelCard, folder: Path, target: Path) -> None:
    """Write the model of `folder` in float32, its tokenizer and its traits into `target`.

    Raises:
        tasks.errors.ConfigError: the model cannot be loaded.
        tasks.errors.WorkError: the exported model computes something else.
    """
    openvino = import_openvino()
    recipe = recognise(card, folder)
    weights = load_weights(recipe, "float32")
    with warnings.catch_warnings():
        # Tracing warns of each Python branch on a shape; the shapes that matter are tested after conversion.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(_module(weights), example_input=_example(weights))
    _hold_against_original(openvino, model, weights, card)
    openvino.save_model(model, target / MODEL, compress_to_fp16=False)
    (target / TOKENIZER).write_text(weights.tokenizer.to_json(), "utf-8")
    traits = {
        "pad_id": weights.pad_id,
        "fallback_id": weights.tokenizer.fallback_id,
        "reads_types": weights.reads_types,
        "dimension": weights.dimension,
        "pooling": weights.pooling,
        "silent": getattr(weights.module, "silent", None),
    }
    (target / TRAITS).write_text(json.dumps(traits), "utf-8")


def _module(weights: Weights) -> Any:
    """Return what is traced: with heads, a module that gives them as outputs of their own."""
    from workers.models.families import AllOutputs, MultiVectorEmbedder  # noqa: PLC0415 - loaded by now

    return AllOutputs(weights.module) if isinstance(weights.module, MultiVectorEmbedder) else weights.module


def _example(weights: Weights) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - loaded by now

    # Two rows of different length: a mask that is all ones could be traced away.
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    example = {"input_ids": torch.where(mask == 1, 5, weights.pad_id), "attention_mask": mask}
    if weights.reads_types:
        example["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
    return example


def _hold_against_original(openvino: Any, model: Any, weights: Weights, card: ModelCard) -> None:
    """Run both on rows of several shapes: what tracing fixed to the example's shape would be wrong without an error."""
    import torch  # noqa: PLC0415 - loaded by now

    request = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    for rows, length in _CHECKED:
        inputs = _random_rows(weights, rows, min(length, weights.tokenizer.max_tokens))
        with torch.inference_mode():
            expected = weights.module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
        found = np.asarray(request.infer(inputs)[0])
        if found.shape != expected.shape or not _close(found, expected):
            raise WorkError(
                f"{card.name}: exported to OpenVINO it gives other values for {rows} rows of {length} tokens"
            )


def _random_rows(weights: Weights, rows: int, length: int) -> dict[str, Any]:
    """Return inputs of random ordinary tokens, each row a token shorter than the one before."""
    lengths = np.maximum(length - np.arange(rows), 1)
    mask = (np.arange(length)[None, :] < lengths[:, None]).astype(np.int64)
    ids = np.asarray(weights.tokenizer.draw_ids(length, rows * length), np.int64).reshape(rows, length)
    inputs = {"input_ids": np.where(mask == 1, ids, weights.pad_id), "attention_mask": mask}
    if weights.reads_types:
        inputs["token_type_ids"] = mask * (np.arange(length) >= length // 2)
    return inputs


def _close(found: Any, expected: Any) -> bool:
    if found.ndim == 1:
        return bool(np.abs(found - expected).max() < _MOST_DIFFERENCE)
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    # Written so that what is no number is not close.
    return bool(((found * expected).sum(axis=1) > _LEAST_COSINE * norms).all())


if __name__ == "__main__":
    try:
        export(ModelCard.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        sys.exit(EXIT_REFUSED)
