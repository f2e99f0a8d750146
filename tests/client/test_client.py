"""The client against a real server: calls, jobs, and their typed answers."""

import numpy as np
import pytest

from tests.support.own_stack import OwnStack
from twolane import ApiError, ItemsFailed, Job, ServerUnreachable, Twolane

TEXTS = [f"passage number {number}" for number in range(50)]


def test_vectors_come_in_the_order_of_the_texts(client: Twolane) -> None:
    together = client.embed(TEXTS, model="fake")
    alone = client.embed(TEXTS[7], model="fake")
    assert together.numpy().shape == (50, 16)
    assert together.vectors[7] == alone.vectors[0]
    assert together.usage.total_tokens == sum(len(text.split()) + 2 for text in TEXTS)
    np.testing.assert_array_equal(together.numpy()[7], np.array(alone.vectors[0], np.float32))


def test_options_reach_the_model(client: Twolane) -> None:
    short = client.embed(TEXTS[0], model="fake", dimensions=4)
    assert len(short.vectors[0]) == 4
    with pytest.raises(ApiError, match="at most 16") as refused:
        client.embed(TEXTS[0], model="fake", dimensions=17)
    assert (refused.value.status, refused.value.param) == (400, "dimensions")


def test_documents_come_back_best_first(client: Twolane) -> None:
    ranking = client.rerank("the moon", ["one", {"text": "two", "page": 3}], model="fake", return_documents=True)
    scores = [ranked.relevance_score for ranked in ranking.results]
    assert scores == sorted(scores, reverse=True)
    assert {ranked.index for ranked in ranking.results} == {0, 1}
    documents = {ranked.index: ranked.document for ranked in ranking.results}
    assert documents[1] == {"text": "two", "page": 3}


def test_the_models_say_what_they_can(client: Twolane) -> None:
    (model,) = client.models()
    assert (model.id, model.dimension, model.ready) == ("fake", 16, True)
    assert client.model("fake") == model


def test_an_unknown_model_is_refused_by_name(client: Twolane) -> None:
    with pytest.raises(ApiError, match="nobody/knows") as refused:
        client.embed("text", model="nobody/knows")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert refused.value.request_id


def test_a_job_gives_what_a_call_gives(client: Twolane) -> None:
    job = client.jobs.create([{"id": f"p{number}", "text": text} for number, text in enumerate(TEXTS)], model="fake")
    ended = client.jobs.wait(job.id)
    assert (ended.status, ended.counts.completed) == ("succeeded", 50)
    results = list(client.jobs.results(job.id))
    assert [item.id for item in results] == [f"p{number}" for number in range(50)]
    assert [item.vector for item in results] == client.embed(TEXTS, model="fake").vectors
    assert client.jobs.get(job.id).fingerprint == ended.fingerprint != ""


def test_results_are_read_over_several_pages(client: Twolane) -> None:
    job = client.jobs.create((f"text {number}" for number in range(2500)), model="fake")
    client.jobs.wait(job.id)
    assert [item.index for item in client.jobs.results(job.id)] == list(range(2500))
    assert [item.index for item in client.jobs.results(job.id, after=2490)] == list(range(2491, 2500))


def test_a_rerank_job_has_a_score_for_each_pair(client: Twolane) -> None:
    pairs = [{"query": f"question {number}", "text": f"answer {number}"} for number in range(10)]
    job = client.jobs.create(pairs, model="fake", type="rerank")
    client.jobs.wait(job.id)
    scores = [item.relevance_score for item in client.jobs.results(job.id)]
    alone = client.rerank("question 3", ["answer 3"], model="fake").results[0].relevance_score
    assert scores[3] == pytest.approx(alone, abs=1e-6)
    assert len(scores) == 10


def test_the_same_key_is_the_same_job(client: Twolane) -> None:
    first = client.jobs.create(TEXTS, model="fake", key="tests-same-key")
    again = client.jobs.create(TEXTS, model="fake", key="tests-same-key")
    assert first.id == again.id
    with pytest.raises(ApiError) as refused:
        client.jobs.create(TEXTS[1:], model="fake", key="tests-same-key")
    assert refused.value.code == "idempotency_mismatch"


def test_a_job_can_be_paused_resumed_and_cancelled(client: Twolane, service: OwnStack) -> None:
    job = client.jobs.create((f"slow text {number}" for number in range(20_000)), model="fake")
    assert client.jobs.pause(job.id).status == "paused"
    assert job.id in {found.id for found in client.jobs.list(status="paused")}
    assert client.jobs.resume(job.id).status in {"queued", "running"}
    client.jobs.cancel(job.id)
    assert client.jobs.wait(job.id).status == "cancelled"


def test_the_list_of_jobs_goes_over_pages(client: Twolane) -> None:
    made = [client.jobs.create([f"listed {number}"], model="fake").id for number in range(103)]
    listed = [job.id for job in client.jobs.list()]
    assert [job_id for job_id in listed if job_id in set(made)] == made[::-1]
    assert [job.id for job in client.jobs.list(limit=2)] == made[:-3:-1]


def test_failed_items_have_their_error_and_can_be_tried_again(client: Twolane) -> None:
    job = client.jobs.create(["good", "POISON", "also good"], model="fake")
    ended = client.jobs.wait(job.id)
    assert (ended.counts.completed, ended.counts.failed) == (2, 1)
    results = list(client.jobs.results(job.id))
    assert results[1].error is not None
    assert results[1].vector == []
    assert len(results[2].vector) == 16
    assert not client.jobs.retry(job.id).ended
    assert client.jobs.wait(job.id).counts.failed == 1


def test_progress_is_reported_until_the_end(client: Twolane) -> None:
    seen: list[Job] = []
    job = client.jobs.create((f"watched {number}" for number in range(3000)), model="fake")
    ended = client.jobs.wait(job.id, on_progress=seen.append)
    assert seen[-1] == ended
    assert [job.counts.completed for job in seen] == sorted(job.counts.completed for job in seen)


def test_results_are_followed_to_their_end_and_behind_an_index(client: Twolane) -> None:
    job = client.jobs.create((f"followed {number}" for number in range(3000)), model="fake")
    followed = list(client.jobs.follow(job.id))
    assert [item.index for item in followed] == list(range(3000))
    assert followed == list(client.jobs.results(job.id))
    assert [item.index for item in client.jobs.follow(job.id, after=2997)] == [2998, 2999]


def test_a_job_comes_back_with_its_name_and_metadata(client: Twolane) -> None:
    job = client.jobs.create(["named"], model="fake", name="shelves", metadata={"source": "shelf 3"})
    assert client.jobs.get(job.id).metadata == {"name": "shelves", "source": "shelf 3"}


def test_events_end_with_the_job(client: Twolane) -> None:
    job = client.jobs.create((f"streamed {number}" for number in range(500)), model="fake")
    states = [event.status for event in client.jobs.events(job.id)]
    assert states[-1] == "succeeded"
    assert states.count("succeeded") == 1


def test_waiting_can_be_bounded(client: Twolane) -> None:
    job = client.jobs.create(["text"] * 100, model="fake")
    client.jobs.pause(job.id)
    with pytest.raises(TimeoutError, match=job.id):
        client.jobs.wait(job.id, timeout_s=1)
    client.jobs.cancel(job.id)


def test_an_estimate_stores_nothing(client: Twolane) -> None:
    before = next(client.jobs.list(limit=1)).id
    estimate = client.jobs.estimate(TEXTS, model="fake")
    assert (estimate.items, estimate.lane) == (50, "bulk")
    assert next(client.jobs.list(limit=1)).id == before


def test_a_whole_file_of_results_can_be_downloaded(client: Twolane) -> None:
    job = client.jobs.create(TEXTS, model="fake")
    client.jobs.wait(job.id)
    data = client.jobs.download(job.id, "npy")
    assert data.startswith(b"\x93NUMPY")


def test_more_texts_than_a_call_takes_are_computed_as_jobs(client: Twolane) -> None:
    texts = [f"large input {number}" for number in range(2100)]
    answer = client.embed(texts, model="fake")
    assert [entry.index for entry in answer.data] == list(range(2100))
    assert answer.vectors[2099] == client.embed(texts[2099], model="fake").vectors[0]
    with pytest.raises(ItemsFailed, match=r"1 items? failed, .*item 1:") as failed:
        client.embed(["good", "POISON", *texts], model="fake")
    assert list(failed.value.errors) == [1]


def test_a_server_that_is_away_is_a_sentence_without_secrets() -> None:
    client = Twolane("http://name:secret@127.0.0.1:9", "tl-key", retry_for_s=0)
    with client, pytest.raises(ServerUnreachable, match=r"no Twolane server answers at http://127\.0\.0\.1:9") as away:
        client.models()
    assert "secret" not in str(away.value)
    assert "tl-key" not in repr(client)


def test_an_address_may_end_with_v1(address: str) -> None:
    with Twolane(f"{address}/v1/") as client:
        assert client.models()[0].id == "fake"
