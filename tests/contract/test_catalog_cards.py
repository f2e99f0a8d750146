"""The catalogue's cards agree with FlagEmbedding's own table of models."""

from pathlib import Path

import numpy as np
import pytest
from FlagEmbedding.inference.embedder.decoder_only.icl import ICLLLMEmbedder
from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING
from FlagEmbedding.inference.reranker.model_mapping import AUTO_RERANKER_MAPPING

from config.catalog import load_catalog
from config.catalog_page import count_parameters
from config.settings import Settings
from tasks.engine import JobParams, Work
from tests.support.model_folders import make_sentence_folder, sentence_modules
from workers.engine import DeviceEngine
from workers.models.registry import load_model

# Cards that differ on purpose, and why.
DIFFERENCES = {
    "bge-en-icl": "FlagEmbedding appends its suffix to queries; here it is a part of the format",
    "bge-code-v1": "FlagEmbedding runs the folder's code; transformers computes Qwen2, or refuses the folder",
    "gte-multilingual-base": "FlagEmbedding runs the folder's code; transformers computes Gte",
}


def test_cards_agree_with_the_table_of_flag_embedding() -> None:
    cards, compared = {card.name: card for card in load_catalog()}, 0
    for name, card in cards.items():
        if name in DIFFERENCES:
            continue
        if (known := AUTO_EMBEDDER_MAPPING.get(name)) is not None:
            compared += 1
            families = {"FlagModel": "encoder", "FlagLLMModel": "decoder", "M3Embedder": "bge-m3"}
            found = {"BaseEmbedder": "encoder", "BaseLLMEmbedder": "decoder", **families}[known.model_class.__name__]
            stated = (card.pooling, card.query_instruction_format, card.family)
            assert stated == (known.pooling_method.value, known.query_instruction_format, found), name
            assert not known.trust_remote_code, name
        elif (reranker := AUTO_RERANKER_MAPPING.get(name)) is not None:
            compared += 1
            layerwise = bool(card.cutoff_layers)
            found = ("cross-encoder", False), ("llm-reranker", False), ("llm-reranker", True)
            kinds = dict(zip(("BaseReranker", "BaseLLMReranker", "LayerWiseLLMReranker"), found, strict=True))
            assert (card.family, layerwise) == kinds[reranker.model_class.__name__], name
    assert compared > 30


def test_what_differs_is_still_another_way_to_the_same_numbers() -> None:
    cards = {card.name: card for card in load_catalog()}
    for name in DIFFERENCES:
        known, card = AUTO_EMBEDDER_MAPPING[name], cards[name]
        assert card.query_instruction_format.startswith(known.query_instruction_format), name
        family = "decoder" if "LLM" in known.model_class.__name__ else "encoder"
        assert (card.pooling, card.family) == (known.pooling_method.value, family), name


def test_each_card_says_licence_and_size_and_its_names_are_its_own() -> None:
    cards = [card for card in load_catalog() if card.name != "fake"]
    names = [name.lower() for card in cards for name in (card.name, *card.aliases)]
    assert len(names) == len(set(names))
    # The page of m3e-base states no licence.
    assert [card.name for card in cards if not card.licence] == ["m3e-base"]
    assert all(count_parameters(card) > 1e6 for card in cards)


def examples_of(texts: list[str]) -> list[dict[str, str]]:
    return [{"instruct": "w1 w2", "query": text, "response": f"{text} w9"} for text in texts]


@pytest.mark.parametrize("examples", [[], ["w3", "w4 w5"]], ids=["zero-shot", "examples"])
def test_bge_en_icl_is_computed_as_by_flag_embedding(examples: list[str], tmp_path: Path) -> None:
    make_sentence_folder("mistral", tmp_path / "model", "lasttoken", *sentence_modules()["normalize"]())
    card = next(card for card in load_catalog() if card.name == "bge-en-icl")
    facts = {"source": f"path:{tmp_path / 'model'}", "dimension": None, "max_tokens": 128, "backend": "torch"}
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    model = load_model(card.model_copy(update=facts), settings)
    task, queries = "w6 w7", ["w8", "w10 w11 w12"]
    reference = ICLLLMEmbedder(
        str(tmp_path / "model"),
        devices="cpu",
        use_fp16=False,
        query_instruction_for_retrieval=task,
        examples_for_task=examples_of(examples) or None,
    )
    # Examples stand in the instruction, as the format goes on behind it.
    shown = [f"{one['instruct']}\n<query>{one['query']}\n<response>{one['response']}" for one in examples_of(examples)]
    instruction = "\n\n<instruct>".join([*shown, task])
    work = Work(card.name, "embeddings", queries, params=JobParams(instruction=instruction))
    with DeviceEngine(settings, {card.name: model}) as engine:
        found = engine.submit(work).result(60).values
    np.testing.assert_allclose(found, reference.encode_queries(queries), atol=1e-5)
