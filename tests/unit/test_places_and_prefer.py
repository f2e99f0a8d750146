"""The Prefer header, and the places of requests that hold a thread."""

import contextlib
from collections.abc import Iterator

import pytest

from app.http.places import Kind, Place, Places, find_kind
from app.http.prefer import Preferences, parse_prefer
from tasks.errors import LaneFull


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", Preferences()),
        ("respond-async", Preferences(respond_async=True)),
        ("wait=10", Preferences(wait_s=10)),
        ("Respond-Async, wait=5", Preferences(respond_async=True, wait_s=5)),
        ('respond-async; foo=bar, wait="7"', Preferences(respond_async=True, wait_s=7)),
        ("wait=-1, wait=abc, handling=lenient", Preferences()),
        ("wait=999999999", Preferences(wait_s=60)),
    ],
)
def test_a_prefer_header_is_read_and_what_is_unknown_is_ignored(header: str, expected: Preferences) -> None:
    assert parse_prefer(header) == expected


def test_the_answer_names_what_was_applied_and_nothing_else() -> None:
    assert parse_prefer("respond-async, wait=5, return=minimal").applied == {
        "Preference-Applied": "respond-async, wait=5"
    }
    assert Preferences().applied == {}


@contextlib.contextmanager
def places_of(places: Places, kind: Kind) -> Iterator[Place]:
    place = places.take(kind)
    assert place is not None
    yield place
    place.release()


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        ({"PATH_INFO": "/v1/embeddings", "CONTENT_LENGTH": "65536"}, Kind.SMALL),
        ({"PATH_INFO": "/v1/embeddings", "CONTENT_LENGTH": "65537"}, Kind.LARGE),
        ({"PATH_INFO": "/v1/embeddings", "CONTENT_LENGTH": "a lot"}, Kind.LARGE),
        ({"PATH_INFO": "/v1/jobs", "HTTP_TRANSFER_ENCODING": "chunked"}, Kind.UPLOAD),
        ({"PATH_INFO": "/v1/models", "REQUEST_METHOD": "GET"}, Kind.SMALL),
        ({"PATH_INFO": "/v1/jobs/j/results", "REQUEST_METHOD": "GET"}, Kind.SMALL),
        ({"PATH_INFO": "/v1/jobs/j/results", "REQUEST_METHOD": "GET", "QUERY_STRING": "format=npy"}, Kind.STREAM),
        ({"PATH_INFO": "/v1/files/f/content", "REQUEST_METHOD": "GET"}, Kind.STREAM),
        ({"PATH_INFO": "/v1/jobs/j/events", "REQUEST_METHOD": "GET"}, Kind.WAIT),
        ({"PATH_INFO": "/livez", "REQUEST_METHOD": "GET"}, Kind.CONTROL),
        ({"PATH_INFO": "/v1/jobs/job_1", "REQUEST_METHOD": "DELETE"}, Kind.CONTROL),
        ({"PATH_INFO": "/v1/batches/batch_1/cancel"}, Kind.CONTROL),
        ({"PATH_INFO": "/console/jobs/act", "CONTENT_LENGTH": "200"}, Kind.CONTROL),
        ({"PATH_INFO": "/console/sign-in", "CONTENT_LENGTH": "65537"}, Kind.LARGE),
    ],
    ids=[
        "small body",
        "large body",
        "odd length",
        "no length",
        "no body",
        "page",
        "stream",
        "file",
        "events",
        "probe",
        "delete",
        "cancel",
        "operator",
        "large form",
    ],
)
def test_a_request_is_sorted_by_its_head(head: dict[str, str], kind: Kind) -> None:
    assert find_kind({"REQUEST_METHOD": "POST", **head}) is kind


def test_a_full_kind_takes_nobody_and_leaves_the_others_alone() -> None:
    places = Places(16, 1000)
    large = [places.take(Kind.LARGE) for _ in range(2)]
    assert None not in large
    assert places.take(Kind.LARGE) is None
    assert places.take(Kind.SMALL) is not None
    assert all(places.take(Kind.CONTROL) is not None for _ in range(100))
    for place in large:
        assert place is not None
        place.release()
        place.release()
    assert places.count(Kind.LARGE) == 0
    assert places.take(Kind.LARGE) is not None


def test_all_kinds_together_leave_threads_to_probes_and_refusals() -> None:
    for threads in (16, 17, 64, 512):
        places = Places(threads, 1000)
        for kind in set(Kind) - {Kind.CONTROL}:
            while places.take(kind) is not None:
                pass
            assert places.count(kind) >= 1
        assert threads - sum(places.count(kind) for kind in Kind) >= threads // 8


def test_one_holder_leaves_a_quarter_of_the_places_to_others() -> None:
    places = Places(64, 1000)
    held = [places.take(Kind.SMALL) for _ in range(25)]
    for place in held[:24]:
        assert place is not None
        place.join("calls of a")
    last = held[24]
    assert last is not None
    with pytest.raises(LaneFull, match="calls of a"):
        last.join("calls of a")
    last.join("calls of b")
    assert held[0] is not None
    held[0].move(Kind.WAIT)
    with places_of(places, Kind.SMALL) as another:
        another.join("calls of a")


def test_a_holder_counts_in_the_kind_that_a_request_moves_to() -> None:
    places = Places(64, 1000)
    for _ in range(6):
        with contextlib.suppress(LaneFull):
            place = places.take(Kind.SMALL)
            assert place is not None
            place.join("the keys of a")
            place.move(Kind.WAIT)
    assert places.count(Kind.WAIT) == 6
    with places_of(places, Kind.SMALL) as seventh:
        seventh.join("the keys of a")
        with pytest.raises(LaneFull):
            seventh.move(Kind.WAIT)
        assert places.count(Kind.SMALL) == 1


def test_a_request_that_turns_out_to_be_of_another_kind_gives_its_first_place_back() -> None:
    places = Places(16, 1000)
    first, second = places.take(Kind.SMALL), places.take(Kind.SMALL)
    assert first is not None
    assert second is not None
    first.move(Kind.STREAM)
    with pytest.raises(LaneFull) as refused:
        second.move(Kind.STREAM)
    assert refused.value.retry_after_s >= 1
    assert (places.count(Kind.SMALL), places.count(Kind.STREAM)) == (1, 1)
    with second.moved(Kind.STREAM) as free:
        assert not free
    with second.moved(Kind.WAIT) as free:
        assert free
        assert places.count(Kind.WAIT) == 1
    assert (places.count(Kind.SMALL), places.count(Kind.WAIT)) == (1, 0)


def test_bodies_share_the_memory_and_one_alone_may_take_any() -> None:
    places = Places(64, 1000)
    with places_of(places, Kind.LARGE) as first, places_of(places, Kind.LARGE) as second:
        first.hold(600)
        first.hold(5000)
        with pytest.raises(LaneFull, match="memory"):
            second.hold(1)
        first.hold(600)
        second.hold(400)
        with pytest.raises(LaneFull):
            second.hold(401)
    with places_of(places, Kind.LARGE) as third, places_of(places, Kind.LARGE) as fourth:
        third.hold(500)
        fourth.hold(500)
