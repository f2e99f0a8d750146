"""What cannot be served right is refused before a worker is ready, with the reason and the way out."""

from pathlib import Path
from typing import Any

import pytest
import torch

from config.catalog import ModelCard
from config.settings import Settings
from tasks.errors import ConfigError
from tests.support.broken_folders import CASES, RERANKER, bert, change_weights, refused
from tests.support.checkpoints import make_tokenizer
from tests.support.model_folders import edit, make_bare, make_sentence_folder
from workers.models.registry import load_model

# -- kinds of models ---------------------------------------------------------------------------------------


@refused("needs code of its own folder .*modeling_qwen.Qwen2Model")
def bidirectional_qwen2_by_its_own_code(folder: Path) -> None:
    make_sentence_folder("qwen2", folder, "lasttoken")
    edit(folder / "config.json", auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})


@refused("needs code of its own folder")
def remote_code(folder: Path) -> None:
    edit(bert(folder) / "config.json", model_type="new", auto_map={"AutoModel": "modeling.NewModel"})


@refused("cannot load .*magic")
def unknown_kind(folder: Path) -> None:
    edit(bert(folder) / "config.json", model_type="magic")


@refused("names no model_type")
def no_kind(folder: Path) -> None:
    edit(bert(folder) / "config.json", model_type=None)


@refused("encoder-decoder")
def t5(folder: Path) -> None:
    edit(bert(folder) / "config.json", model_type="t5", is_encoder_decoder=True)


@refused("reads more than text")
def reads_images(folder: Path) -> None:
    edit(bert(folder) / "config.json", model_type="clip", vision_config={"hidden_size": 4})


@refused("quantized .gptq.")
def quantized(folder: Path) -> None:
    edit(bert(folder) / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})


@refused("is an adapter")
def adapter(folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


@refused("config.json cannot be read")
def damaged_configuration(folder: Path) -> None:
    (bert(folder) / "config.json").write_text('{"model_type": "bert", ')


@refused("has no tokenizer")
def no_tokenizer(folder: Path) -> None:
    for path in bert(folder).glob("tokenizer*.json"):
        path.unlink()


@refused("its tokenizer gives ids up to 303, its weights know 200 tokens")
def tokenizer_of_another_model(folder: Path) -> None:
    change_weights(bert(folder), lambda state: state.update(shorter(state)))
    edit(folder / "config.json", vocab_size=200)


def shorter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = "embeddings.word_embeddings.weight"
    return {name: state[name][:200].contiguous()}


@refused("its tokenizer reads all texts alike")
def tokenizer_that_finds_nothing(folder: Path) -> dict[str, Any]:
    make_bare("qwen2", folder, vocab_size=400)
    make_tokenizer("qwen3").save_pretrained(folder)
    return {"pooling": "last_token", "max_tokens": 128}


@refused("says no length")
def no_length(folder: Path) -> None:
    make_sentence_folder("bert", folder, "mean")
    edit(folder / "config.json", max_position_embeddings=None)
    edit(folder / "tokenizer_config.json", model_max_length=None)
    edit(folder / "sentence_bert_config.json", max_seq_length=None)


# -- cards that contradict their folder --------------------------------------------------------------------


@refused("card says pooling cls, its folder says mean")
def card_with_another_pooling(folder: Path) -> dict[str, Any]:
    bert(folder)
    return {"pooling": "cls"}


@refused("card says dimension 32, its folder says 64")
def card_with_another_dimension(folder: Path) -> dict[str, Any]:
    bert(folder)
    return {"dimension": 32}


@refused("card says family decoder, its folder is of family encoder")
def card_with_another_family(folder: Path) -> dict[str, Any]:
    bert(folder)
    return {"family": "decoder"}


@refused("max_tokens 4096, but it has 128 positions")
def card_with_more_tokens(folder: Path) -> dict[str, Any]:
    bert(folder)
    return {"max_tokens": 4096}


@refused("card says family cross-encoder, its folder is of family encoder")
def embedder_as_reranker(folder: Path) -> dict[str, Any]:
    bert(folder)
    return RERANKER


@pytest.mark.parametrize("kind", sorted(CASES))
def test_a_folder_that_cannot_be_served_right_is_refused(kind: str, tmp_path: Path) -> None:
    write, words = CASES[kind]
    fields = write(tmp_path / "model") or {}
    card = ModelCard(**{"name": "tiny", "source": f"path:{tmp_path / 'model'}", "backend": "torch", **fields})
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32", models_dir=tmp_path / "models")
    with pytest.raises(ConfigError, match=words) as caught:
        load_model(card, settings)
    assert str(caught.value).startswith("model tiny: ")


def test_by_default_the_refusal_is_the_same_where_an_export_would_come_first(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    change_weights(folder, lambda state: state.pop("encoder.layer.0.attention.self.query.bias"))
    settings = Settings(_env_file=None, device="cpu", models_dir=tmp_path / "models")
    with pytest.raises(ConfigError, match=r"lacks the weights encoder.layer.0.attention.self.query.bias"):
        load_model(ModelCard(name="tiny", source=f"path:{folder}"), settings)
