"""Model folders that cannot be served right: damaged, incomplete, contradictory, or of a kind that nobody computes.

Each function writes one and may return fields of its card; `CASES` has them by name, with words of the refusal.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers.base.modules import Dense

from tests.support.model_folders import edit, make_bare, make_cross_encoder, make_sentence_folder, sentence_modules

__all__ = ["CASES", "RERANKER", "bert", "change_weights", "refused"]

MODULES = sentence_modules()
RERANKER = {"family": "cross-encoder", "capabilities": ("rerank",), "rerank_by": "cross-encoder"}
Break = Callable[[Path], dict[str, Any] | None]
CASES: dict[str, tuple[Break, str]] = {}


def refused(words: str) -> Callable[[Break], Break]:
    """Keep a function that writes a folder, and may return fields of its card, with words of the refusal."""

    def keep(write: Break) -> Break:
        CASES[write.__name__.replace("_", "-")] = write, words
        return write

    return keep


def bert(folder: Path, pooling: str = "mean", *after: torch.nn.Module) -> Path:
    make_sentence_folder("bert", folder, pooling, *after)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def add_module(folder: Path, kind: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": len(modules), "name": str(len(modules)), "path": "9_More", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))


# -- heads -------------------------------------------------------------------------------------------------


@refused("no head for scores")
def plain_encoder_as_reranker(folder: Path) -> dict[str, Any]:
    make_bare("bert", folder)
    return RERANKER


@refused("Qwen2ForCausalLM, a language model without a head")
def language_model_as_reranker(folder: Path) -> dict[str, Any]:
    make_bare("qwen2", folder, "AutoModelForCausalLM")
    return RERANKER


@refused("a classifier of 2 labels")
def two_labels_as_reranker(folder: Path) -> dict[str, Any]:
    make_cross_encoder("bert", folder, labels=2)
    return RERANKER


@refused("a classifier of 3 labels")
def three_labels_without_a_family(folder: Path) -> None:
    make_bare("bert", folder, "AutoModelForSequenceClassification", num_labels=3)


@refused("lacks the weights classifier.bias, classifier.weight: they would be random")
def reranker_without_the_weights_of_its_head(folder: Path) -> None:
    make_cross_encoder("bert", folder)
    change_weights(folder, lambda state: [state.pop(key) for key in list(state) if "classifier" in key])


@refused("lacks the weights .*pooler")
def reranker_without_the_pooler_that_its_head_reads(folder: Path) -> None:
    make_cross_encoder("bert", folder)
    change_weights(folder, lambda state: [state.pop(key) for key in list(state) if "pooler" in key])


@refused("Tanh, which is not supported")
def reranker_with_another_activation(folder: Path) -> None:
    make_cross_encoder("bert", folder, activation_fn=torch.nn.Tanh())


@refused("names no token whose logit is the score")
def reranker_without_its_words_for_yes_and_no(folder: Path) -> None:
    make_bare("qwen2", folder, "AutoModelForCausalLM")
    kinds = ["base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore"]
    modules = [{"idx": at, "path": "", "type": f"sentence_transformers.{kind}"} for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))


@refused("a language model, and nothing in its folder says how")
def language_model_without_a_card(folder: Path) -> None:
    make_bare("qwen2", folder, "AutoModelForCausalLM")


@refused("says a pooling")
def encoder_without_a_pooling(folder: Path) -> None:
    make_bare("bert", folder)


@refused("says a pooling")
def encoder_by_its_card_without_a_pooling(folder: Path) -> dict[str, Any]:
    make_bare("bert", folder)
    return {"family": "encoder"}


@refused("lacks sparse_linear.pt or colbert_linear.pt")
def bge_m3_without_its_heads(folder: Path) -> dict[str, Any]:
    make_bare("xlm-roberta", folder)
    return {"family": "bge-m3", "pooling": "cls", "capabilities": ("dense", "sparse", "colbert")}


# -- weights -----------------------------------------------------------------------------------------------


@refused(r"lacks the weights .*layer\.1.* and \d+ more")
def missing_layer(folder: Path) -> None:
    bert(folder)
    change_weights(folder, lambda state: [state.pop(key) for key in list(state) if "layer.1." in key])


@refused("lacks the weights encoder.layer.0.attention.self.query.bias")
def missing_bias(folder: Path) -> None:
    bert(folder)
    change_weights(folder, lambda state: state.pop("encoder.layer.0.attention.self.query.bias"))


@refused("has no use for the weights")
def leftover_layer(folder: Path) -> None:
    edit(bert(folder) / "config.json", num_hidden_layers=1)


@refused("has no use for the weights adapter")
def leftover_adapter(folder: Path) -> None:
    change_weights(bert(folder), lambda state: state.update({"adapter.lora_A": torch.zeros(2, 2)}))


@refused("(other shapes|mismatch|size)")
def other_shapes(folder: Path) -> None:
    edit(bert(folder) / "config.json", intermediate_size=32)


@refused("no finite value for a text")
def weights_that_are_no_numbers(folder: Path) -> None:
    change_weights(bert(folder), lambda state: state["encoder.layer.0.output.dense.weight"].fill_(float("nan")))


@refused("(the same for all texts|no finite value)")
def weights_that_are_zero(folder: Path) -> None:
    change_weights(bert(folder), lambda state: [one.zero_() for one in state.values()])


@refused("is damaged: it has")
def cut_off_weights(folder: Path) -> None:
    path = bert(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@refused("is damaged")
def empty_weights(folder: Path) -> None:
    (bert(folder) / "model.safetensors").write_bytes(b"")


@refused("Git LFS pointer")
def lfs_pointer(folder: Path) -> None:
    (bert(folder) / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\n")


@refused("has no weights")
def no_weights(folder: Path) -> None:
    (bert(folder) / "model.safetensors").unlink()


@refused("lacks model-00002-of-00002.safetensors")
def missing_shard(folder: Path) -> None:
    bert(folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@refused("cannot load")
def pickle_with_code(folder: Path) -> None:
    (bert(folder) / "model.safetensors").unlink()
    torch.save({"a": Path("/")}, folder / "pytorch_model.bin")


# -- modules -----------------------------------------------------------------------------------------------


@refused("sentence_transformers.models.CNN, a module that is not supported")
def unknown_module(folder: Path) -> None:
    add_module(bert(folder), "sentence_transformers.models.CNN")


@refused("custom_st.Transformer, which is code of the folder's own")
def module_of_its_own_code(folder: Path) -> None:
    modules = json.loads((bert(folder) / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


@refused("StaticEmbedding, a module that is not supported")
def static_embedding(folder: Path) -> None:
    bert(folder)
    kind = "sentence_transformers.sentence_transformer.modules.static_embedding.StaticEmbedding"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))


@refused("Router, a module that is not supported")
def router(folder: Path) -> None:
    add_module(bert(folder), "sentence_transformers.base.modules.router.Router")


@refused("the modules Transformer, Pooling, SpladePooling in this order")
def splade_behind_a_pooling(folder: Path) -> None:
    add_module(bert(folder), "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling")


@refused("holds a MultiVectorEncoder")
def token_vectors(folder: Path) -> None:
    edit(bert(folder) / "config_sentence_transformers.json", model_type="MultiVectorEncoder")


@refused("the modules Transformer, Dense, Pooling in this order")
def dense_before_the_pooling(folder: Path) -> None:
    modules = json.loads((bert(folder, "mean", *MODULES["dense"]()) / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([modules[0], modules[2], modules[1]]))


@refused("reads token_embeddings")
def dense_over_tokens(folder: Path) -> None:
    bert(folder, "mean", Dense(64, 32))
    edit(folder / "2_Dense/config.json", module_input_name="token_embeddings")


@refused("mine.Swish, which is no module of torch")
def dense_with_its_own_activation(folder: Path) -> None:
    edit(bert(folder, "mean", Dense(64, 32)) / "2_Dense/config.json", activation_function="mine.Swish")


@refused("takes vectors of 32, what comes before gives 64")
def dense_of_another_size(folder: Path) -> None:
    edit(bert(folder, "mean", Dense(64, 32)) / "2_Dense/config.json", in_features=32)


@refused("do not fit")
def dense_with_other_weights(folder: Path) -> None:
    edit(bert(folder, "mean", Dense(64, 32)) / "2_Dense/config.json", out_features=48)


@refused("has no weights")
def dense_without_weights(folder: Path) -> None:
    (bert(folder, "mean", Dense(64, 32)) / "2_Dense/model.safetensors").unlink()


@refused("include_prompt false")
def pooling_without_the_prompt(folder: Path) -> None:
    edit(bert(folder) / "1_Pooling/config.json", include_prompt=False)


@refused("pools by magic")
def unknown_pooling(folder: Path) -> None:
    edit(bert(folder) / "1_Pooling/config.json", pooling_mode="magic")


@refused("leads out of the folder")
def module_outside_the_folder(folder: Path) -> None:
    modules = json.loads((bert(folder) / "modules.json").read_text())
    modules[1]["path"] = "../elsewhere"
    (folder / "modules.json").write_text(json.dumps(modules))


@refused("default prompt query is not among")
def default_prompt_that_is_not_there(folder: Path) -> None:
    edit(bert(folder) / "config_sentence_transformers.json", prompts={"a": "b"}, default_prompt_name="query")


@refused("one for fill-mask")
def transformer_of_another_task(folder: Path) -> None:
    edit(bert(folder) / "sentence_bert_config.json", transformer_task="fill-mask")


@refused("tokenized with")
def texts_read_in_a_way_of_its_own(folder: Path) -> None:
    edit(bert(folder) / "sentence_bert_config.json", processing_kwargs={"text": {"add_special_tokens": False}})
