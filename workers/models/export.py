"""Exports one model to OpenVINO's format: `python -m workers.models.export <card as JSON> <folder> <target>`.

Owns what goes into a folder of the cache. Runs in a process of its own, so that a worker which serves by OpenVINO
never holds torch, FlagEmbedding and a second copy of the weights: about half a gigabyte.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from config.catalog import ModelCard
from workers.models.weights import Weights, load_weights

__all__ = ["MODEL", "TOKENIZER", "TRAITS", "export", "import_openvino"]

MODEL, TOKENIZER, TRAITS = "model.xml", "tokenizer.json", "traits.json"


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry package, which would report each conversion; it does without."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes an import fail
    import openvino  # noqa: PLC0415 - only workers that serve by it pay for it

    return openvino


def export(card: ModelCard, folder: Path, target: Path) -> None:
    """Write the model of `folder` in float32, its tokenizer and its traits into `target`.

    Raises:
        tasks.errors.ConfigError: the model cannot be loaded.
    """
    openvino = import_openvino()
    weights = load_weights(card, folder, "float32")
    with warnings.catch_warnings():
        # Tracing warns of each Python branch on a shape; the shapes that matter are tested after conversion.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(_module(weights), example_input=_example(weights))
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


if __name__ == "__main__":
    export(ModelCard.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
