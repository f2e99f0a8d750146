"""Starts infinity-emb with its ONNX engine, or exports the model for it; runs in infinity's own environment.

optimum 1.27 imports names from a module that newer versions of torch have moved; they are put back here, and nothing
else is changed. `python -m benchmarks.peers.infinity_onnx v2 ...` serves, `... export FOLDER TARGET` exports.
"""

import json
import shutil
import sys
from pathlib import Path

import torch.onnx.symbolic_opset14 as public_opset
from torch.onnx._internal.torchscript_exporter import symbolic_opset14 as moved_opset

__all__ = ["export"]

_MAX_TOKENS = 256

for _name in dir(moved_opset):
    if not hasattr(public_opset, _name):
        setattr(public_opset, _name, getattr(moved_opset, _name))


def export(folder: str, target: str) -> None:
    """Copy a checkpoint and add its ONNX form, with the sequence length and batch size left open.

    The copy's configuration names 256 positions, since this engine cuts texts there: where all others cut them too.
    """
    import torch  # noqa: PLC0415 - serving needs none of this
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    shutil.copytree(folder, target, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.return_dict = False
    sample = dict(tokenizer(["one text", "another, longer text"], padding=True, return_tensors="pt"))
    names = ["input_ids", "attention_mask", "token_type_ids"]  # the order of the model, not of the tokenizer
    axes = {name: {0: "batch", 1: "sequence"} for name in [*names, "last_hidden_state"]}
    path = Path(target) / "model.onnx"
    torch.onnx.export(
        model,
        (sample,),
        str(path),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    settings = Path(target) / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_position_embeddings": _MAX_TOKENS}))


if __name__ == "__main__":
    if sys.argv[1] == "export":
        export(*sys.argv[2:])
    else:
        from infinity_emb.cli import cli

        cli()
