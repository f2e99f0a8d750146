"""The catalogue's cards agree with FlagEmbedding's own table of models."""

from FlagEmbedding.inference.embedder.model_mapping import AUTO_EMBEDDER_MAPPING
from FlagEmbedding.inference.reranker.model_mapping import AUTO_RERANKER_MAPPING

from config.catalog import load_catalog

# Cards that differ on purpose, and why.
DIFFERENCES: dict[str, str] = {}


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
    assert compared > 20
