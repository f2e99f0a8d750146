"""The console and the API behind it: who gets in, what a form may do, and that nothing of a caller's becomes markup."""

import logging
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from redis.exceptions import ConnectionError as RedisConnectionError
from werkzeug.test import TestResponse

from app.access.key_store import KeyStore
from stack.embedded_redis import EmbeddedServer
from tasks import keys
from tasks.errors import StoreUnavailable
from tasks.presence.fleet import WorkerCard, WorkerEnd, send_card
from tests.support.job_maker import begin, make_completion, submit
from tests.support.web import opened_app, services_of, settings_of, write_keys

EVIL = "<img src=x onerror=alert(1)>\"'{{7*7}}"
KEYS = {
    "ops": 'admin = true\nname = "night shift"',
    "viewer": "admin = true\nread_only = true",
    "acme": "",
}


@pytest.fixture(scope="module")
def app_here(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    folder = tmp_path_factory.mktemp("data")
    settings = settings_of(server, folder, keys_file=write_keys(folder / "keys.toml", KEYS))
    with opened_app(settings) as app:
        yield app


@pytest.fixture(autouse=True)
def empty(app_here: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    services_of(app_here).redis.flushall()
    monkeypatch.setattr(app_here.extensions["twolane-authenticator"].store, "_next_read_s", 0.0)


class Browser:
    """A signed-in browser: keeps the cookie, and sends forms as the pages do."""

    def __init__(self, app: Flask, key: str) -> None:
        self._client = app.test_client()
        answer = self._client.post("/console/sign-in", data={"key": key})
        assert answer.status_code == 302, answer.text
        self.cookie = answer.headers["Set-Cookie"]
        found = re.search(r'name="csrf" value="([^"]+)"', self.page("/console"))
        assert found is not None
        self.csrf = found[1]

    def page(self, path: str) -> str:
        answer = self._client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text

    def post(self, path: str, **fields: Any) -> TestResponse:
        return self._client.post(path, data={"csrf": self.csrf, **fields})


@pytest.fixture
def ops(app_here: Flask) -> Browser:
    return Browser(app_here, "ops")


def api(app: Flask, key: str, path: str, method: str = "GET", **options: Any) -> TestResponse:
    return app.test_client().open(path, method=method, headers={"Authorization": f"Bearer {key}"}, **options)


def card(**fields: Any) -> WorkerCard:
    described: dict[str, Any] = {"worker_id": "cpu-1@box#7", "host": "box", "pid": 7, "device": "cpu", "state": "ready"}
    return WorkerCard(**(described | {"models": {"fake": "ready"}, "started_at": 1.0} | fields))


# -- who gets in


def test_without_a_session_every_page_leads_to_the_sign_in(app_here: Flask) -> None:
    client = app_here.test_client()
    for path in ("/console", "/console/jobs", "/console/jobs/job_1", "/console/workers"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/console/sign-in")
    refresh = client.get("/console", headers={"HX-Request": "true"})
    assert (refresh.status_code, refresh.headers["HX-Redirect"]) == (204, "/console/sign-in")


@pytest.mark.parametrize(("key", "status"), [("nobody", 401), ("", 401), ("acme", 403)])
def test_only_an_admins_key_signs_in(app_here: Flask, key: str, status: int) -> None:
    answer = app_here.test_client().post("/console/sign-in", data={"key": key})
    assert answer.status_code == status
    assert "Set-Cookie" not in answer.headers
    assert 'role="alert"' in answer.text


def test_the_session_is_out_of_reach_of_scripts_and_other_sites(app_here: Flask, ops: Browser) -> None:
    assert {"HttpOnly", "SameSite=Strict", "Path=/console"} <= set(ops.cookie.split("; "))
    page = app_here.test_client().get("/console/sign-in")
    assert "script-src 'self'; style-src 'self'" in page.headers["Content-Security-Policy"]
    assert (page.headers["X-Frame-Options"], page.headers["Cache-Control"]) == ("DENY", "no-store")
    foreign = {"Sec-Fetch-Site": "cross-site"}
    assert app_here.test_client().post("/console/sign-in", data={"key": "ops"}, headers=foreign).status_code == 403


def test_neither_key_nor_token_is_kept(app_here: Flask, ops: Browser) -> None:
    redis = services_of(app_here).redis
    kept = b" ".join(name + str(redis.hgetall(name)).encode() for name in redis.scan_iter("*session*"))
    token = ops.cookie.split(";")[0].partition("=")[2]
    assert b"session" in kept
    assert token.encode() not in kept
    assert b"'ops'" not in kept


def test_signing_out_ends_the_session_for_every_holder_of_the_cookie(app_here: Flask, ops: Browser) -> None:
    thief = app_here.test_client()
    thief.set_cookie("twolane_console", ops.cookie.split(";")[0].partition("=")[2], path="/console")
    assert thief.get("/console").status_code == 200
    assert ops.post("/console/sign-out").status_code == 302
    assert thief.get("/console").status_code == 302


def test_a_body_that_is_no_form_of_ours_is_not_read(app_here: Flask) -> None:
    client = app_here.test_client()
    for data in ({"key": "x" * 100_000}, {"key": "x", "file": (BytesIO(b"x" * 100_000), "large.bin")}):
        assert client.post("/console/sign-in", data=data).status_code == 413


def test_a_form_without_the_sessions_token_changes_nothing(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    job, _ = begin(live.store, live.blobs, ["x"], tenant="acme")
    for forged in ("", "guess"):
        assert ops.post("/console/jobs/act", csrf=forged, id=job.id, action="cancel").status_code == 403
    assert live.store.get(job.id, None).state == "running"


def test_a_read_only_key_looks_and_changes_nothing(app_here: Flask) -> None:
    live = services_of(app_here)
    job, _ = begin(live.store, live.blobs, ["x"], tenant="acme")
    viewer = Browser(app_here, "viewer")
    assert "Cancel" not in viewer.page("/console/jobs")
    assert viewer.post("/console/jobs/act", id=job.id, action="cancel").status_code == 403
    assert api(app_here, "viewer", f"/v1/admin/jobs/{job.id}/cancel", "POST").status_code == 403
    assert api(app_here, "viewer", f"/v1/admin/jobs/{job.id}").json["tenant"] == "acme"  # type: ignore[index]
    assert viewer.post("/console/sign-out").status_code == 302


def test_what_belongs_to_the_operator_is_refused_to_a_tenant(app_here: Flask) -> None:
    for path in ("/v1/admin/jobs", "/v1/admin/workers", "/v1/admin/tenants", "/v1/workers"):
        assert api(app_here, "acme", path).status_code == 403
        assert api(app_here, "ops", path).status_code == 200
        assert app_here.test_client().get(path).status_code == 401


# -- what is shown and done


def test_jobs_of_all_tenants_are_found_by_words(app_here: Flask) -> None:
    live = services_of(app_here)
    wiki = submit(live.store, live.blobs, ["x"], tenant="acme", extra={"metadata": {"name": "Wiki", "source": "en"}})
    other = submit(live.store, live.blobs, ["y"], tenant="search")
    live.store.cancel(other.id, None)

    def found(words: str) -> set[str]:
        return {job["id"] for job in api(app_here, "ops", "/v1/admin/jobs", query_string={"q": words}).json["data"]}  # type: ignore[index]

    assert found("") == {wiki.id, other.id}
    assert found("state:active") == found("name:wiki") == found("tenant:acme model:fake") == {wiki.id}
    assert found("meta.source=en") == found("WIKI") == found(f"id:{wiki.id[-8:]}") == {wiki.id}
    assert found("state:cancelled") == {other.id}
    assert found("meta.source=de") == found("meta.absent=") == found("tenant:acme state:cancelled") == set()
    wrong = api(app_here, "ops", "/v1/admin/jobs", query_string={"q": "owner:acme"})
    assert (wrong.status_code, "use tenant, model" in wrong.text) == (400, True)


def test_an_operator_pauses_many_jobs_of_others_which_is_logged_with_the_name_of_the_key(
    app_here: Flask, ops: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    live = services_of(app_here)
    jobs = [submit(live.store, live.blobs, ["x"], tenant=tenant) for tenant in ("acme", "search")]
    ids = [job.id for job in jobs]
    with caplog.at_level(logging.INFO):
        answer = ops.post("/console/jobs/act", id=[*ids, "job_gone"], action="pause", back="/console/jobs?q=")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/jobs?q=")
    page = ops.page("/console/jobs?q=")
    assert "2 jobs paused." in page
    assert "there is no job" in page
    assert "2 jobs paused." not in ops.page("/console/jobs?q=")  # said once
    assert f"ops/night shift: pause of job {ids[0]} of tenant acme" in caplog.text
    (*_, event) = live.store.listing.log(ids[0])
    assert (event["event"], event["by"]) == ("paused", "ops/night shift")
    assert event["request_id"] == answer.headers["x-request-id"]
    assert live.store.get(ids[1], None).state == "paused"


def test_a_form_leads_back_to_the_console_and_nowhere_else(ops: Browser) -> None:
    for target in ("https://elsewhere.example", "//elsewhere.example", "/console//../docs", "/consolexyz", ""):
        there = ops.post("/console/jobs/act", action="pause", back=target).headers["Location"]
        assert there.startswith("/console")
        assert not there.startswith("/consolexyz")


def test_a_job_shows_its_failures_by_code_with_their_ids_and_its_events(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    job, claim = begin(live.store, live.blobs, ["secret text one", "secret text two"], tenant="acme")
    live.store.leases.complete(claim, make_completion(claim, failed=1))
    page = ops.page(f"/console/jobs/{job.id}")
    assert "succeeded, 1 failed" in page
    assert "secret text" not in page
    assert "Retry 1" in page
    assert re.search(r"<b>created</b>", page)
    assert ops.post("/console/jobs/act", id=job.id, action="retry").status_code == 303
    assert live.store.get(job.id, None).state == "running"


def test_nothing_of_a_callers_becomes_markup(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    extra = {"metadata": {"name": EVIL, EVIL: EVIL}}
    job, claim = begin(live.store, live.blobs, ["x"], tenant="acme", extra=extra)
    live.store.leases.fail(claim, EVIL)
    live.redis.hset(f"twolane:{{{job.id}}}:job", "error", EVIL)
    send_card(live.redis, card(host=EVIL, device=EVIL, reason=EVIL, state="draining", models={EVIL: "failed"}))
    live.fleet.note_end("cpu-1@box#7", WorkerEnd(1.0, EVIL))
    for path in (
        "/console",
        "/console/jobs?q=",
        f"/console/jobs/{job.id}",
        "/console/workers",
        f"/console/jobs?q={EVIL}",
    ):
        page = ops.page(path)
        assert "<img" not in page
        assert "&lt;img" in page or "onerror" not in page
        assert ">49" not in page


def test_a_silent_worker_is_named_with_what_it_holds_and_when_that_runs_again(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    job = submit(live.store, live.blobs, ["x"], tenant="acme")
    live.store.leases.dispatch(job.lane)
    live.store.leases.claim(job.id, 0, "cpu-1@box#7")
    send_card(live.redis, card())
    assert 'role="alert"' not in ops.page("/console")
    live.redis.zincrby("twolane:fleet:seen", -41_000, "cpu-1@box#7")
    banner = re.search(r'role="alert">(.*?)</section>', ops.page("/console"), re.DOTALL)
    assert banner is not None
    said = " ".join(re.sub(r"<[^>]+>", "", banner[1]).split())
    assert said.startswith("box / cpu is silent for 41 s. It holds 1 chunk of …" + job.id[-8:])
    assert re.search(r"run again elsewhere in 1\d s\.", said)
    (worker,) = api(app_here, "ops", "/v1/workers").json["data"]  # type: ignore[index]
    assert (worker["condition"], worker["holds"][0]["job"]) == ("silent", job.id)


def test_a_worker_is_asked_to_drain_and_hears_of_it_at_its_next_heartbeat(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    assert send_card(live.redis, card()) == ""
    assert ops.post("/console/workers/order", id="cpu-1@box#7", order="drain").status_code == 303
    assert "takes nothing new" in ops.page("/console/workers")
    assert send_card(live.redis, card()) == "drain"
    assert send_card(live.redis, card(worker_id="cpu-1@box#8", started_at=2.0)) == ""  # the one after it in its place
    live.fleet.note_end("cpu-1@box#7", WorkerEnd(2.0, "ended by signal 9"))
    (member,) = live.fleet.members()
    assert [end.reason for end in member.restarts] == ["ended by signal 9"]
    assert ops.post("/console/workers/order", id="gone", order="drain").status_code == 303
    assert "no such worker" in ops.page("/console/workers")
    assert ops.post("/console/workers/order", id="cpu-1@box#8", order="explode").status_code == 400


def test_without_keys_the_console_is_open_but_its_forms_are_not(server: EmbeddedServer, tmp_path: Any) -> None:
    with opened_app(settings_of(server, tmp_path)) as app:
        client = app.test_client()
        assert client.get("/console", follow_redirects=True).status_code == 200
        assert client.post("/console/jobs/act", data={"id": "job_1", "action": "cancel"}).status_code == 403


# -- keys


def test_a_key_that_is_made_is_shown_once_works_at_once_and_ends_when_it_is_revoked(
    app_here: Flask, ops: Browser
) -> None:
    fields = {"tenant": "acme", "name": "loader", "requests_per_minute": "600", "models": "fake"}
    page = ops.post("/console/keys/new", **fields).text
    found = re.search(r'id="secret">(tl-[\w-]+)<', page)
    assert found is not None
    secret = found[1]
    assert secret not in ops.page("/console/keys")
    kept = services_of(app_here).redis.hgetall(keys.api_keys())
    assert secret.encode() not in b"".join(kept.values())
    assert api(app_here, secret, "/v1/jobs").status_code == 200
    assert api(app_here, secret, "/v1/admin/keys").status_code == 403
    (name,) = [name.decode() for name in kept]
    assert "loader" in ops.page("/console/keys")
    assert ops.post("/console/keys/revoke", id=name, back="/console/keys").status_code == 303
    assert "opens nothing any more" in ops.page("/console/keys")
    assert api(app_here, secret, "/v1/jobs").status_code == 401


def test_a_key_of_the_file_is_revoked_as_well_and_its_sessions_end(app_here: Flask, ops: Browser) -> None:
    viewer = Browser(app_here, "viewer")
    listed = api(app_here, "ops", "/v1/admin/keys").json["data"]  # type: ignore[index]
    assert {key["source"] for key in listed} == {"file"}
    (name,) = [key["id"] for key in listed if key["read_only"]]
    answer = api(app_here, "ops", f"/v1/admin/keys/{name}/revoke", "POST").json
    assert (answer["valid"], answer["revoked_by"]) == (False, "ops/night shift")  # type: ignore[index]
    assert api(app_here, "viewer", "/v1/jobs").status_code == 401
    assert viewer.post("/console/sign-out").status_code == 302  # to the sign-in: there is no session any more
    with pytest.raises(AssertionError):
        viewer.page("/console")


def test_a_rotated_key_ends_after_its_grace_and_its_successor_has_its_rights(app_here: Flask) -> None:
    made = api(app_here, "ops", "/v1/admin/keys", "POST", json={"tenant": "acme", "max_queued_items": 7}).json or {}
    new = [
        api(app_here, "ops", f"/v1/admin/keys/{made['id']}/rotate", "POST", json={"grace_s": grace_s}).json or {}
        for grace_s in (60, 0)
    ]
    assert {one["max_queued_items"] for one in new} == {7}
    assert len({one["secret"] for one in (made, *new)}) == 3
    assert api(app_here, made["secret"], "/v1/jobs").status_code == 401
    assert all(api(app_here, one["secret"], "/v1/jobs").status_code == 200 for one in new)
    again = api(app_here, "ops", f"/v1/admin/keys/{made['id']}/rotate", "POST", json={})
    assert (again.status_code, "has been revoked" in again.text) == (409, True)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tenant": "no spaces allowed"}, "tenant"),
        ({"tenant": "acme", "requests_per_minute": "many"}, "requests_per_minute"),
        ({"tenant": "acme", "max_queued_items": "0"}, "max_queued_items"),
        ({"tenant": "acme", "name": EVIL}, "name"),
        ({"tenant": "acme", "priority": "urgent"}, "priority"),
    ],
    ids=["tenant", "number", "zero", "name", "priority"],
)
def test_a_wrong_form_gets_a_sentence_and_makes_no_key(
    app_here: Flask, ops: Browser, fields: dict[str, str], says: str
) -> None:
    answer = ops.post("/console/keys/new", **fields)
    assert answer.status_code == 400
    (problem,) = re.findall(r'<p class="problem" role="alert">(.*?)</p>', answer.text)
    assert says in problem
    assert "<img" not in answer.text
    assert services_of(app_here).redis.hlen(keys.api_keys()) == 0


def test_nobody_revokes_the_key_in_use_nor_one_that_is_not_there(app_here: Flask, ops: Browser) -> None:
    listed = api(app_here, "ops", "/v1/admin/keys").json["data"]  # type: ignore[index]
    (own,) = [key["id"] for key in listed if key["admin"] and not key["read_only"]]
    assert api(app_here, "ops", f"/v1/admin/keys/{own}/revoke", "POST").status_code == 409
    assert api(app_here, "ops", "/v1/admin/keys/none/revoke", "POST").status_code == 404
    ops.post("/console/keys/revoke", id=own)
    assert "key that you are using" in ops.page("/console")
    assert ops.post("/console/keys/rotate", id="none").status_code == 400


def test_a_key_that_was_revoked_stays_so_while_redis_does_not_answer(
    app_here: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = KeyStore(services_of(app_here).redis)
    secret, record = store.make({"tenant": "acme"}, "test")
    store.revoke(record, "test")
    assert not store.current()[record.id].is_valid

    def away(*_: object) -> None:
        raise RedisConnectionError

    monkeypatch.setattr(services_of(app_here).redis, "hgetall", away)
    monkeypatch.setattr(store, "_next_read_s", 0.0)
    assert not store.current()[record.id].is_valid
    with pytest.raises(StoreUnavailable):
        KeyStore(services_of(app_here).redis).current()
    assert secret.startswith("tl-")


def test_a_tenant_reads_the_log_of_its_own_jobs_without_the_names_of_others_keys(app_here: Flask, ops: Browser) -> None:
    live = services_of(app_here)
    job = submit(live.store, live.blobs, ["x"], tenant="acme")
    assert api(app_here, "acme", f"/v1/jobs/{job.id}/pause", "POST").status_code == 200
    assert ops.post("/console/jobs/act", id=job.id, action="resume").status_code == 303
    events = api(app_here, "acme", f"/v1/jobs/{job.id}/log").json["data"]  # type: ignore[index]
    assert [(event["event"], event["by"].split("/")[0]) for event in events[1:]] == [
        ("paused", "acme"),
        ("resumed", "an operator"),
    ]
    assert events[1]["request_id"].startswith("req_")
    other = submit(live.store, live.blobs, ["x"], tenant="search")
    assert api(app_here, "acme", f"/v1/jobs/{other.id}/log").status_code == 404
