"""The console's pages about models: what is shown, ordered and tried, on a worker that computes."""

import re

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support.web import services_of


@pytest.fixture(scope="module")
def csrf(client: FlaskClient) -> str:
    page = client.get("/console", follow_redirects=True).text
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_models_are_listed_with_what_they_give_and_who_has_them(client: FlaskClient, csrf: str) -> None:
    page = client.get("/console/models").text
    assert re.search(r'id="model-fake".*?>fake', page, re.DOTALL)
    assert "more in the catalogue" in page


def test_an_order_for_a_model_reaches_the_workers_record(client: FlaskClient, csrf: str, app_here: Flask) -> None:
    form = {"csrf": csrf, "model": "fake", "action": "reload", "back": "/console/models"}
    assert client.post("/console/models/order", data=form).status_code == 303
    assert "All workers reload fake." in client.get("/console/models").text
    for wrong in ({"action": "format"}, {"model": "no-such-model"}):
        assert client.post("/console/models/order", data={**form, **wrong}).status_code in {400, 404}
    assert services_of(app_here).redis.keys("*model-orders*")


def test_texts_are_embedded_and_compared_by_hand(client: FlaskClient, csrf: str) -> None:
    form = {"csrf": csrf, "model": "fake", "texts": "one text\n\n one text \nanother <b>text</b>"}
    page = client.post("/console/try", data=form).text
    assert "3 texts in" in page
    assert page.count("1.00") >= 5  # each with itself, and the two equal ones with each other
    assert "another &lt;b&gt;text&lt;/b&gt;" in page


def test_texts_are_ranked_by_a_query(client: FlaskClient, csrf: str) -> None:
    page = client.post("/console/try", data={"csrf": csrf, "model": "fake", "texts": "a b\nc d", "query": "a"}).text
    scores = [float(score) for score in re.findall(r'data-label="score">([\d.]+)<', page)]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"texts": " \n"}, "1 to 20 texts"),
        ({"texts": "x\n" * 21}, "1 to 20 texts"),
        ({"model": "none"}, "does not exist"),
    ],
    ids=["empty", "many", "model"],
)
def test_a_wrong_trial_gets_a_sentence(client: FlaskClient, csrf: str, fields: dict[str, str], says: str) -> None:
    answer = client.post("/console/try", data={"csrf": csrf, "model": "fake", "texts": "x", **fields})
    assert answer.status_code == 400
    assert says in answer.text
