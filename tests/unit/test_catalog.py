"""Names lead to one model each: those of cards, their aliases, IDs and folders."""

from pathlib import Path

import pytest

from config.catalog import Catalog, ModelCard, load_catalog
from config.model_names import card_fields

CARDS = {card.name: card for card in load_catalog()}


def test_every_card_says_all_that_the_web_tier_needs() -> None:
    for card in CARDS.values():
        assert card.complete, card.name
        assert card.source.partition(":")[0] in {"bundled", "modelscope", "hf", "none"}, card.name
        assert card.dimension if "dense" in card.capabilities else card.rerank_by == "cross-encoder", card.name


def test_no_name_or_alias_stands_for_two_cards() -> None:
    names = [name.lower() for card in CARDS.values() for name in (card.name, *card.aliases)]
    assert sorted(names) == sorted(set(names))
    assert len({card.slug for card in CARDS.values()}) == len(CARDS)


@pytest.mark.parametrize(
    ("written", "name", "source", "revision"),
    [
        ("acme/tiny", "acme/tiny", "modelscope:acme/tiny", ""),
        ("hf:acme/tiny-v1.5", "acme/tiny-v1.5", "hf:acme/tiny-v1.5", ""),
        ("modelscope:acme/tiny@v2", "acme/tiny", "modelscope:acme/tiny", "v2"),
        ("/models/Mine", "Mine", "path:/models/Mine", ""),
        ("path:/models/Mine/", "Mine", "path:/models/Mine", ""),
    ],
)
def test_an_id_or_a_folder_needs_no_card(written: str, name: str, source: str, revision: str) -> None:
    catalog = load_catalog(named=[written])
    card = catalog.find(written)
    assert card is not None
    assert (card.name, card.source, card.revision, card.complete) == (name, source, revision, False)
    assert catalog.find(name) is card
    assert catalog.served == (card,)


@pytest.mark.parametrize("written", ["tiny", "hf:tiny", "ftp:acme/tiny", "acme/tiny/more", "", "hf:", "/"])
def test_other_names_are_no_ids(written: str) -> None:
    assert card_fields(written) is None


def test_an_id_that_the_catalogue_knows_is_its_card() -> None:
    catalog = load_catalog(named=["BAAI/bge-m3"])
    assert [card.name for card in catalog.served] == ["bge-m3"]


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give it a card with a name of its own"):
        load_catalog(named=["/a/mine", "/b/mine"])


def test_two_models_that_would_share_a_lane_are_refused() -> None:
    cards = [ModelCard(name="a/b", source="path:/x"), ModelCard(name="a-b", source="path:/y")]
    with pytest.raises(ValueError, match="would share the lane a-b"):
        Catalog(cards, ["a/b", "a-b"])


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert "did you mean bge-m3" in load_catalog().describe_unknown("bge-m33")
