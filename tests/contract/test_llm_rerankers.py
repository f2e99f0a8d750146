"""Rerankers that are language models score as their authors' code does, and what cannot be served so is refused."""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import AutoTokenizer

from config.catalog import ModelCard
from config.settings import Settings
from stack.embedded_redis import EmbeddedServer
from tasks.cache.values import digest_items
from tasks.engine import JobParams, Work
from tasks.errors import ConfigError, InvalidRequest
from tasks.lanes import Service
from tests.support import batch_requests as batches
from tests.support.llm_rerankers import LAYERWISE, RERANKERS, make_llm_reranker, open_reference
from tests.support.model_folders import edit, make_bare
from tests.support.web import NDJSON, opened_app, running_scheduler, running_worker, settings_of, wait_for_end
from workers.doctor.texts import make_texts
from workers.engine import DeviceEngine
from workers.models.folders.pair_template import TEMPLATES
from workers.models.loaded import LoadedModel
from workers.models.registry import load_model

KINDS = (*RERANKERS, LAYERWISE)
INSTRUCTION = "Predict whether passage B explains query A."
# FlagEmbedding's class of the layerwise one uses what transformers will not have for ever.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.rope_scaling. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The attention mask API:FutureWarning"),
]


def make_pairs() -> list[tuple[str, str]]:
    draw = random.Random(2)
    words = [
        "fox",
        "dog",
        "quick brown",
        "yes",
        "No",
        "1234",
        "向量检索",
        "поиск",
        "{x}",
        "  spaces ",
        "line\nbreak",
        "é",
    ]
    texts = [" ".join(draw.choices(words, k=length)) for length in (0, 1, 1, 2, 3, 5, 8, 13, 30, 60)]
    return [(draw.choice(texts[1:8]), text) for text in texts * 3]


PAIRS = make_pairs()
# In a dozen scripts, from empty on. No pair is too long for a model: the pages of their authors cut nothing, so what is
# cut has a test of its own. These small tokenizers make a token of each byte that they do not know.
VARIED = [
    ("How do I reset a password?", text[:60])
    for text in make_texts(120, lambda draw, length: " ".join(draw.choices(["fox", "zebra", "42", "да"], k=length)))
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the folder of a kind and its model, made once."""
    folders: dict[str, tuple[Path, LoadedModel]] = {}

    def make(kind: str) -> tuple[Path, LoadedModel]:
        if kind not in folders:
            folder = tmp_path_factory.mktemp("rerankers") / kind
            folders[kind] = folder, load(folder, **make_llm_reranker(kind, folder))
        return folders[kind]

    return make


def load(folder: Path, **fields: Any) -> LoadedModel:
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    return load_model(ModelCard(**{"name": "tiny", "source": f"path:{folder}", **fields}), settings)


def score(
    model: LoadedModel, pairs: Sequence[tuple[str, str]], service: Service = Service.BULK, **params: Any
) -> NDArray[np.float32]:
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
    work = Work("tiny", "rerank", texts, queries, service, JobParams(**params))
    with DeviceEngine(settings, {"tiny": model}) as engine:
        outcomes = engine.submit(work).result(120)
    assert not outcomes.errors
    return outcomes.values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instruction", [None, INSTRUCTION], ids=["own", "given"])
def test_every_reranker_gives_the_scores_of_the_reference(kind: str, instruction: str | None, made: Any) -> None:
    folder, model = made(kind)
    # The soft cap makes the reference ten times slower; the first sixty have every script and every odd text.
    pairs = PAIRS if instruction else VARIED[: 60 if kind == "with-a-softcap" else None]
    assert max(len(tokens) for tokens in encode(model, pairs)) < model.card.max_tokens, "none is cut"
    expected = open_reference(kind, folder)(pairs, instruction)
    np.testing.assert_allclose(score(model, pairs, instruction=instruction), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 0.01, "it tells pairs apart, so equality means something"


@pytest.mark.parametrize("layer", [2, 3])
def test_a_layerwise_reranker_scores_after_the_layer_that_a_call_names(layer: int, made: Any) -> None:
    folder, model = made(LAYERWISE)
    assert model.card.cutoff_layers == (2, 3, 4)
    found = score(model, PAIRS, cutoff_layer=layer)
    np.testing.assert_allclose(found, open_reference(LAYERWISE, folder)(PAIRS, layer=layer), atol=1e-5)
    assert np.abs(found - score(model, PAIRS)).max() > 0.01


def test_rows_of_several_layers_share_a_pass(made: Any) -> None:
    _, model = made(LAYERWISE)
    settings = Settings(_env_file=None, device="cpu", threads=1, dtype="float32")
    params = [JobParams(cutoff_layer=layer) for layer in (2, None, 3)]
    works = [Work("tiny", "rerank", [text], [query], params=one) for query, text in PAIRS for one in params]
    with DeviceEngine(settings, {"tiny": model}) as engine:
        futures = [engine.submit(work) for work in works]
        found = np.array([future.result(120).values[0] for future in futures]).reshape(len(PAIRS), 3)
    for column, layer in enumerate((2, None, 3)):
        np.testing.assert_allclose(found[:, column], score(model, PAIRS, cutoff_layer=layer), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_scores_alike_alone_in_a_batch_and_in_both_lanes(kind: str, made: Any) -> None:
    _, model = made(kind)
    together = score(model, PAIRS)
    alone = np.concatenate([model.backend.run([one]) for one in encode(model, PAIRS)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together, score(model, PAIRS, Service.INTERACTIVE), atol=1e-5)


def encode(model: LoadedModel, pairs: Sequence[tuple[str, str]], truncate: Any = "end") -> list[Any]:
    queries, texts = [query for query, _ in pairs], [text for _, text in pairs]
    return [one.tokens for one in model.tokenizer.encode_pairs(queries, texts, truncate)]


@pytest.mark.parametrize("truncate", ["end", "start"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_document_is_cut_and_the_template_stays_whole(kind: str, truncate: Any, made: Any) -> None:
    _, model = made(kind)
    words = [f"w{at}" for at in range(5000)]
    long = " ".join(words) if truncate == "end" else " ".join(reversed(words))
    (cut,) = model.tokenizer.encode_pairs(["a quick fox"], [long], truncate)
    assert (len(cut.tokens), cut.cut) == (model.card.max_tokens, True)
    assert cut.asked > model.card.max_tokens
    text = model.tokenizer.fast.decode(cut.tokens.ids.tolist(), skip_special_tokens=False)
    (whole,) = model.tokenizer.encode_pairs(["a quick fox"], ["w1 w2 w3"], truncate)
    frame = model.tokenizer.fast.decode(whole.tokens.ids.tolist(), skip_special_tokens=False)
    before, _, after = frame.partition("w1 w2 w3")
    assert text.startswith(before)
    assert text.endswith(after)
    assert "w1 w2 w3" in text if truncate == "end" else "w3 w2 w1" in text


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_query_leaves_room_for_the_document(kind: str, made: Any) -> None:
    _, model = made(kind)
    long = "fox and dog " * 3000
    (row,) = model.tokenizer.encode_pairs([long], ["zebra"], "end")
    assert row.cut
    assert len(row.tokens) < model.card.max_tokens
    assert "zebra" in model.tokenizer.fast.decode(row.tokens.ids.tolist())
    (row,) = model.tokenizer.encode_pairs([long], [long], "end")
    assert len(row.tokens) == model.card.max_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_an_instruction_that_leaves_no_room_is_refused(kind: str, made: Any) -> None:
    _, model = made(kind)
    with pytest.raises(InvalidRequest, match="the instruction leaves"):
        score(model, PAIRS, instruction="word " * 1000)


@pytest.mark.parametrize("kind", ["qwen3-reranker", LAYERWISE])
def test_a_layer_that_a_model_does_not_offer_is_refused_with_those_that_it_does(kind: str, made: Any) -> None:
    _, model = made(kind)
    offer = "after the layers 2 to 4, not 9" if kind == LAYERWISE else "after its last layer only"
    with pytest.raises(InvalidRequest, match=offer):
        score(model, PAIRS, cutoff_layer=9)


def test_instruction_and_layer_are_part_of_what_the_cache_compares() -> None:
    params = [JobParams(), JobParams(instruction="x"), JobParams(cutoff_layer=2), JobParams(cutoff_layer=3)]
    works = [Work("tiny", "rerank", ["text"], ["query"], params=one) for one in params]
    assert len({digest_items(work, "same")[0] for work in works}) == len(params)


def test_the_fingerprint_tells_templates_apart(made: Any) -> None:
    folder, model = made("qwen3-reranker")
    others = [load(folder, template="bge-reranker-v2"), load(folder, template="qwen3-reranker", query_instruction="x")]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 3


# -- through the whole product -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(made: Any, server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlaskClient]:
    folder, _ = made(LAYERWISE)
    data = tmp_path_factory.mktemp("data")
    card = f'[[models]]\nname = "tiny"\nsource = "path:{folder}"\nfamily = "llm-reranker"\ncapabilities = ["rerank"]\n'
    (data / "models.toml").write_text(card + "max_tokens = 1024\ncutoff_layers = [2, 3, 4]\n")
    settings = settings_of(server, data, catalog_file=data / "models.toml", device="cpu", dtype="float32")
    settings = settings.model_copy(update={"models": ("tiny",)})
    with opened_app(settings) as app, running_worker(settings), running_scheduler(app):
        yield app.test_client()


WISHES: list[dict[str, Any]] = [{}, {"cutoff_layers": 2}, {"cutoff_layers": [3]}, {"instruction": INSTRUCTION}]
QUERY, DOCUMENTS = "a quick fox", ["dog", "lazy fox", "1234 no"]


def expect(model: LoadedModel, wish: dict[str, Any]) -> NDArray[np.float32]:
    layer = wish.get("cutoff_layers")
    layer = layer[0] if isinstance(layer, list) else layer
    pairs = [(QUERY, document) for document in DOCUMENTS]
    return score(model, pairs, cutoff_layer=layer, instruction=wish.get("instruction"))


def read_scores(ranking: dict[str, Any]) -> list[float]:
    return [one["relevance_score"] for one in sorted(ranking["results"], key=lambda one: one["index"])]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_a_call_and_a_job_score_as_they_ask_for(wish: dict[str, Any], client: FlaskClient, made: Any) -> None:
    expected = expect(made(LAYERWISE)[1], wish)
    body = {"model": "tiny", "query": QUERY, "documents": DOCUMENTS, **wish}
    answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == 200, answer.json
    np.testing.assert_allclose(read_scores(answer.json or {}), expected, atol=1e-5)
    queued = client.post("/v1/jobs", json={"type": "rerank", **body}, headers={"Prefer": "respond-async"})
    job = wait_for_end(client, (queued.json or {})["id"])
    lines = client.get(f"/v1/jobs/{job['id']}/results", headers={"Accept": NDJSON}).text.splitlines()
    np.testing.assert_allclose([json.loads(line)["relevance_score"] for line in lines], expected, atol=1e-5)


def test_lines_of_a_batch_score_as_each_asks_for(client: FlaskClient, made: Any) -> None:
    body = {"model": "tiny", "query": QUERY, "documents": DOCUMENTS}
    lines = [batches.line_of(f"l{at}", {**body, **wish}, batches.RERANK) for at, wish in enumerate(WISHES)]
    lines.append(batches.line_of("wrong", {**body, "cutoff_layers": 9}, batches.RERANK))
    batch = batches.run(client, lines, batches.RERANK)
    answers = batches.read(client, batch["output_file_id"])
    for at, wish in enumerate(WISHES):
        found = read_scores(answers[f"l{at}"]["response"]["body"])
        np.testing.assert_allclose(found, expect(made(LAYERWISE)[1], wish), atol=1e-5)
    (wrong,) = batches.read(client, batch["error_file_id"]).values()
    assert "after the layers 2 to 4, not 9" in json.dumps(wrong)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/jobs"])
@pytest.mark.parametrize("layers", [9, [2, 3], "two", 0, True])
def test_a_wrong_layer_is_answered_400(path: str, layers: Any, client: FlaskClient) -> None:
    body = {"type": "rerank", "model": "tiny", "query": QUERY, "documents": DOCUMENTS, "cutoff_layers": layers}
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    assert (answer.json or {})["error"]["param"] == "cutoff_layers"


# -- folders of sentence-transformers ------------------------------------------------------------------------

CHAT = (
    "{% set n = namespace(i='the default', q='', d='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set n.i = m.content %}{% elif m.role == 'query' %}{% set n.q = m.content %}"
    "{% elif m.role == 'document' %}{% set n.d = m.content %}{% endif %}{% endfor %}"
    "<|im_start|>user\nTask {a}: {{ n.i }}\nQuery: {{ n.q }}\nText: {{ n.d }}{TRIM}<|im_end|>\n<|im_start|>assistant\n"
)


def write_chat_folder(bare: Path, folder: Path, chat: str = CHAT, no: int | None = 21, **more: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bare)
    tokenizer.chat_template = chat.replace("{TRIM}", "")
    tokenizer.save_pretrained(bare)
    modules = [Transformer(str(bare), transformer_task="text-generation"), LogitScore(20, no)]
    CrossEncoder(modules=modules, device="cpu", **more).save_pretrained(str(folder))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    make_llm_reranker("qwen3-reranker", tmp_path / "bare")
    return tmp_path / "bare"


@pytest.mark.parametrize("no", [21, None])
@pytest.mark.parametrize("prompt", [None, "find what answers"])
def test_a_chat_template_of_the_folder_is_read(no: int | None, prompt: str | None, bare: Path, tmp_path: Path) -> None:
    more = {} if prompt is None else {"prompts": {"query": prompt}, "default_prompt_name": "query"}
    write_chat_folder(bare, tmp_path / "model", no=no, **more)
    model = load(tmp_path / "model")
    assert model.card.query_instruction == (prompt or "")
    reference = CrossEncoder(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(score(model, PAIRS), reference.predict(PAIRS), atol=1e-5)
    given = reference.predict(PAIRS, prompt=INSTRUCTION)
    np.testing.assert_allclose(score(model, PAIRS, instruction=INSTRUCTION), given, atol=1e-5)
    long = [("a fox", "and a dog " * 900), ("a fox", "no end " * 900)]
    np.testing.assert_allclose(score(model, long), reference.predict(long), atol=1e-5)


# -- what is refused -----------------------------------------------------------------------------------------


def refuse(folder: Path, words: str, **fields: Any) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(folder, **fields)
    assert str(caught.value).startswith("model tiny: ")


def test_a_language_model_without_a_template_is_refused_with_the_way_out(bare: Path) -> None:
    refuse(bare, "template if it is a reranker")
    refuse(bare, "say template = qwen3-reranker or", family="llm-reranker")


def test_a_template_for_an_encoder_is_refused(tmp_path: Path) -> None:
    make_bare("bert", tmp_path / "model")
    refuse(
        tmp_path / "model",
        "it is BertModel, and a reranker by template is a language model",
        template="mxbai-rerank-v2",
    )


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    make_bare("qwen3", tmp_path / "model", "AutoModelForSequenceClassification", num_labels=2)
    refuse(tmp_path / "model", "classifier of 2 labels", template="qwen3-reranker")


def test_a_tokenizer_without_the_word_for_yes_is_refused(tmp_path: Path) -> None:
    make_bare("qwen3", tmp_path / "model", "AutoModelForCausalLM")
    refuse(tmp_path / "model", "does not know 'yes'", template="qwen3-reranker")


def test_logits_that_the_model_changes_are_refused(bare: Path, tmp_path: Path) -> None:
    config = {"logits_scaling": 8.0, "max_position_embeddings": 1024, "tie_word_embeddings": True}
    make_bare("granite", tmp_path / "model", "AutoModelForCausalLM", **config, vocab_size=800)
    for path in bare.glob("tokenizer*"):
        path.rename(tmp_path / "model" / path.name)
    refuse(tmp_path / "model", "GraniteForCausalLM changes its logits", template="qwen3-reranker")


def test_a_chat_template_that_changes_texts_is_refused(bare: Path, tmp_path: Path) -> None:
    write_chat_folder(bare, tmp_path / "model", CHAT.replace("n.d }}", "n.d | trim }}"))
    refuse(tmp_path / "model", "does not write instruction, query and document once each and as they are")


def test_too_short_a_model_for_its_template_is_refused(bare: Path) -> None:
    edit(bare / "config.json", max_position_embeddings=100)
    refuse(bare, "reads 100 tokens, too few for its template", template="qwen3-reranker")


def test_the_lightweight_reranker_is_refused_by_name(tmp_path: Path) -> None:
    make_bare("gemma2", tmp_path / "model", "AutoModelForCausalLM")
    code = {"AutoConfig": "gemma_config.CostWiseGemmaConfig"}
    edit(tmp_path / "model/config.json", architectures=["CostWiseGemmaForCausalLM"], auto_map=code)
    refuse(tmp_path / "model", "bge-reranker-v2.5-gemma2-lightweight")


def test_heads_of_another_kind_are_refused(made: Any, tmp_path: Path) -> None:
    make_llm_reranker(LAYERWISE, tmp_path / "model")
    edit(tmp_path / "model/config.json", head_type="complex")
    refuse(tmp_path / "model", "heads other than one number per layer")


def test_every_template_can_be_named_in_a_card() -> None:
    for template in TEMPLATES:
        assert ModelCard(name="tiny", source="path:/nowhere", template=template).template == template
