"""Keys with the real libraries: a right one, a wrong one, one that is used up, and two tenants apart from each other.

Each library runs in its own process and prints what it raised and how long it wanted to wait; `time.sleep`, with which
all of them wait, notes the time instead, but in the slow test, which waits.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from config.new_key import new_key
from tests.support.client_environment import installed, node_folder, python_program, run_code
from tests.support.stack_fixture import RunningStack, running_stack

# The first test installs the clients: one to several minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WRONG = "tl-wrong-key-9f3"
PER_MINUTE = 3
# Whose limit one test uses up.
LIMITED = ("openai-newest", "openai", "cohere", "litellm-embedding", "litellm-rerank")
LIMITED_TOO = (*LIMITED, "openai-node")
CLIENTS = {
    "openai": """
        from openai import AuthenticationError as Refused, OpenAI, RateLimitError as TooMany
        def ask(key):
            with OpenAI(base_url=URL + "/v1", api_key=key, http_client=httpx.Client(event_hooks=HOOKS)) as client:
                return client.embeddings.create(model="fake", input="a").data[0].embedding
    """,
    "cohere": """
        from cohere import ClientV2, TooManyRequestsError as TooMany, UnauthorizedError as Refused
        def ask(key):
            with httpx.Client(event_hooks=HOOKS) as http:
                client = ClientV2(base_url=URL, api_key=key, httpx_client=http)
                return client.rerank(model="fake", query="a", documents=["a"]).results
    """,
    "litellm-embedding": """
        import litellm
        from litellm import AuthenticationError as Refused, RateLimitError as TooMany
        from openai import OpenAI
        def ask(key):
            with OpenAI(base_url=URL + "/v1", api_key=key, http_client=httpx.Client(event_hooks=HOOKS)) as client:
                return litellm.embedding(model="openai/fake", input=["a"], client=client, max_retries=2).data
    """,
    "litellm-rerank": """
        import litellm
        from litellm import AuthenticationError as Refused, RateLimitError as TooMany
        def ask(key):
            server = {"api_base": URL + "/v1", "api_key": key}
            return litellm.rerank(model="hosted_vllm/fake", query="a", documents=["a"], **server).results
    """,
}
CLIENTS["openai-newest"] = CLIENTS["openai"]
SCRIPT = """
import json, time, httpx
URL, KEYS = {url!r}, {keys!r}
waits, answers = [], []
if not {patient}:
    time.sleep = waits.append
def note(response):
    answers.append([response.status_code, response.headers.get("retry-after")])
HOOKS = {{"response": [note]}}
{client}
told = []
for key in KEYS:
    try:
        outcome, message = ("answered", "") if ask(key) else ("empty", "")
    except (Refused, TooMany) as error:
        outcome, message = "refused" if isinstance(error, Refused) else "too many", str(error)
    told.append({{"outcome": outcome, "message": message, "waits": waits[:], "answers": answers[:]}})
    waits.clear()
    answers.clear()
print("=== " + json.dumps(told))
"""


@pytest.fixture(scope="module")
def secrets() -> dict[str, tuple[str, str]]:
    return {name: new_key() for name in ("ada", "bob", "patient", *LIMITED_TOO)}


@pytest.fixture(scope="module")
def stack_with_keys(
    secrets: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("keyed")
    limits = {"patient": 1, **dict.fromkeys(LIMITED_TOO, PER_MINUTE)}
    path = folder / "keys.toml"
    path.touch(0o600)
    with path.open("w", encoding="utf-8") as file:
        for name, (_, digest) in secrets.items():
            limit = f"requests_per_minute = {limits[name]}\n" if name in limits else ""
            file.write(f'[[keys]]\ntenant = "{name}"\nsha256 = "{digest}"\n{limit}\n')
    with running_stack(folder / "stack", "fake", keys_file=str(path)) as running:
        yield running


Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def ask(stack_with_keys: RunningStack, tmp_path: Path) -> Ask:
    """Have a library ask once with each key and tell what came of it."""

    def ask_with(client: str, *keys: str, patient: bool = False) -> list[dict[str, Any]]:
        # The newest openai is the one of the project's own environment.
        program = Path(sys.executable) if client == "openai-newest" else installed(python_program)
        lines = CLIENTS[client].strip("\n").split("\n")
        code = "\n".join(line[8:] for line in lines)
        script = SCRIPT.format(url=stack_with_keys.url, keys=list(keys), patient=patient, client=code)
        output = run_code(program, script, tmp_path, tmp_path)
        (line,) = [line for line in output.splitlines() if line.startswith("=== ")]
        told: list[dict[str, Any]] = json.loads(line.removeprefix("=== "))
        return told

    return ask_with


@pytest.mark.parametrize("client", CLIENTS)
def test_a_right_key_is_answered_and_a_wrong_one_raises_the_librarys_own_error(
    client: str, ask: Ask, secrets: dict[str, tuple[str, str]]
) -> None:
    right, wrong = ask(client, secrets["ada"][0], WRONG)
    assert right["outcome"] == "answered"
    assert wrong["outcome"] == "refused"
    assert "9f3" not in wrong["message"]
    assert "Incorrect API key" in wrong["message"]
    assert wrong["waits"] == [], "a wrong key stays wrong: it is not sent again"


@pytest.mark.parametrize("client", LIMITED)
def test_over_the_limit_a_library_waits_as_long_as_it_is_told_and_then_raises_its_own_error(
    client: str, ask: Ask, secrets: dict[str, tuple[str, str]]
) -> None:
    *within, over = ask(client, *[secrets[client][0]] * (PER_MINUTE + 1))
    assert {told["outcome"] for told in within} == {"answered"}
    assert over["outcome"] == "too many"
    assert f"Rate limit reached: {PER_MINUTE} requests per minute." in over["message"]
    if client == "litellm-rerank":
        # It raises at once, and shows no headers.
        assert over["waits"] == []
        return
    # Two tries more, as docs/clients/README.md says.
    assert [status for status, _ in over["answers"]] == [429, 429, 429]
    told_to_wait = [int(after) for _, after in over["answers"]]
    assert all(1 <= seconds <= 60 for seconds in told_to_wait)
    assert over["waits"] == told_to_wait[:-1]


@pytest.mark.slow
def test_who_waits_as_long_as_told_is_answered(ask: Ask, secrets: dict[str, tuple[str, str]]) -> None:
    first, second = ask("openai", *[secrets["patient"][0]] * 2, patient=True)
    assert [status for status, _ in first["answers"]] == [200]
    assert [status for status, _ in second["answers"]] == [429, 200]


NODE = """
import OpenAI from "openai";
for (const apiKey of {keys}) {{
  const client = new OpenAI({{ baseURL: "{url}", apiKey, maxRetries: 0 }});
  try {{
    const answer = await client.embeddings.create({{ model: "fake", input: "a" }});
    console.log("answered", answer.data[0].embedding.length);
  }} catch (error) {{
    console.log(error.constructor.name, error.headers.get("retry-after") !== null, error.message);
  }}
}}
"""


def test_the_library_for_node_raises_its_own_errors(
    stack_with_keys: RunningStack, secrets: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "node_modules").symlink_to(installed(node_folder) / "node_modules")
    keys = [WRONG, *[secrets["openai-node"][0]] * (PER_MINUTE + 1)]
    code = NODE.format(url=f"{stack_with_keys.url}/v1", keys=json.dumps(keys))
    refused, *within, over = run_code("node", code, tmp_path, tmp_path).splitlines()
    assert refused.startswith("AuthenticationError false 401 Incorrect API key")
    assert within == ["answered 64"] * PER_MINUTE
    assert over.startswith("RateLimitError true 429 Rate limit reached")


TENANTS = """
import io, json, httpx
from openai import NotFoundError, OpenAI
ada, bob = (OpenAI(base_url={url!r}, api_key=key, max_retries=0) for key in {keys!r})
line = {{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {{"model": "fake", "input": "a"}}}}
file = ada.files.create(file=("a.jsonl", json.dumps(line).encode()), purpose="batch").id
batch = ada.batches.create(input_file_id=file, endpoint="/v1/embeddings", completion_window="24h").id
body = {{"type": "embeddings", "model": "fake", "input": ["a"]}}
def job_call(client, method, path):
    return getattr(client, method)(path, cast_to=httpx.Response)
queued = {{"headers": {{"Prefer": "respond-async"}}}}
job = ada.post("/jobs", body=body, options=queued, cast_to=httpx.Response).json()["id"]
calls = {{
    "read the file": lambda client: client.files.retrieve(file),
    "read what is in the file": lambda client: client.files.content(file).read(),
    "run the file": lambda client: client.batches.create(
        input_file_id=file, endpoint="/v1/embeddings", completion_window="24h"
    ),
    "read the batch": lambda client: client.batches.retrieve(batch),
    "read the job": lambda client: job_call(client, "get", "/jobs/" + job),
    "cancel the batch": lambda client: client.batches.cancel(batch),
    "cancel the job": lambda client: job_call(client, "delete", "/jobs/" + job),
    "delete the file": lambda client: client.files.delete(file),
}}
def attempt(call, client):
    try:
        call(client)
    except NotFoundError:
        return "not found"
    except Exception as error:
        return type(error).__name__
    return "done"
def list_all(client):
    jobs = job_call(client, "get", "/jobs").json()["data"]
    return [one.id for one in (*client.files.list(), *client.batches.list())] + [one["id"] for one in jobs]
lists = {{"bob": list_all(bob), "ada": list_all(ada)}}
stranger = {{name: attempt(call, bob) for name, call in calls.items()}}
owner = {{name: attempt(call, ada) for name, call in calls.items()}}
print("=== " + json.dumps([lists, [file, batch, job], stranger, owner]))
"""


def test_two_tenants_see_nothing_of_each_others_files_batches_and_jobs(
    stack_with_keys: RunningStack, secrets: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    keys = [secrets[name][0] for name in ("ada", "bob")]
    code = TENANTS.format(url=f"{stack_with_keys.url}/v1", keys=keys)
    output = run_code(installed(python_program), code, tmp_path, tmp_path)
    lists, made, stranger, owner = json.loads(output.partition("=== ")[2])
    assert set(made) <= set(lists["ada"])
    assert lists["bob"] == []
    assert set(stranger.values()) == {"not found"}, stranger
    # What is over cannot be cancelled; all else was there to be done.
    assert {name: done for name, done in owner.items() if done != "done"}.items() <= {
        ("cancel the batch", "ConflictError"),
        ("cancel the job", "ConflictError"),
    }
