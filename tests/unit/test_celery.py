"""The Celery app is found by name and reads its settings only when it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

from config.settings import Settings
from tasks import keys
from tasks.celery import celery_config, make_app

ROOT = Path(__file__).parents[2]


def test_importing_the_app_reads_no_environment() -> None:
    script = "from tasks.celery import app; import tasks.bulk.chunk_task; print(app.configured)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={"TWOLANE_WINDOW": "not a number", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


def test_celery_finds_the_app_by_the_name_of_the_room() -> None:
    script = "from celery.app.utils import find_app; print(find_app('tasks').main)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "twolane"


def test_the_queues_are_those_of_the_served_models() -> None:
    made = make_app(Settings(_env_file=None, redis_url="redis://nowhere", models=("fake", "all-MiniLM-L6-v2")))
    assert [queue.name for queue in made.conf.task_queues] == ["bulk.fake", "bulk.all-minilm-l6-v2"]
    assert made.conf.task_create_missing_queues is False
    assert made.amqp.queues.keys() == {"bulk.fake", "bulk.all-minilm-l6-v2"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task_acks_late", True),
        ("task_ignore_result", True),
        ("worker_prefetch_multiplier", 1),
        ("broker_connection_max_retries", None),
        ("broker_channel_error_retry", True),
        ("accept_content", ["json"]),
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
    ],
)
def test_the_settings_are_those_that_went_through_chaos_runs(name: str, value: object) -> None:
    assert celery_config(Settings(_env_file=None))[name] == value


def test_the_brokers_keys_stand_under_our_prefix() -> None:
    options = celery_config(Settings(_env_file=None))["broker_transport_options"]
    assert options["global_keyprefix"] == keys.BROKER_PREFIX
    assert options["visibility_timeout"] == 900
