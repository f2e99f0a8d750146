"""Who is woken by rows that come: only loops that may take them, since every wake costs a thread its turn."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tasks.engine import Outcomes
from tasks.lanes import Service
from tests.support.fakes import fake_model
from tests.support.polling import wait_until
from workers.engine.packing import Budget
from workers.engine.pending import PendingWork
from workers.engine.queue import WorkQueue
from workers.models.tokenizing.tokenizer import Tokens


class CountingTaker:
    """Takes one class of service, and counts how often it looked whether there is something to do."""

    def __init__(self, service: Service) -> None:
        self.looks = 0
        self._service = service

    def choose(self, interactive: bool, bulk: bool) -> Service:
        return Service.INTERACTIVE if interactive else Service.BULK

    def serves(self, model: str, service: Service) -> bool:
        return service is self._service

    def budget(self, model: str, service: Service) -> Budget:
        return Budget(lambda longest: 64)

    def fill_budget(self, model: str) -> Budget:
        return Budget(lambda longest: 0)

    def interrupted(self) -> bool:
        self.looks += 1
        return False


def test_a_request_wakes_only_the_loop_that_serves_it() -> None:
    queue = WorkQueue(max_tokens=1000, window_tokens=1000)
    bulk, quick = CountingTaker(Service.BULK), CountingTaker(Service.INTERACTIVE)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(queue.take, bulk, 60)
        wait_until(lambda: bulk.looks)
        for _ in range(5):
            queue.put(a_request(Service.INTERACTIVE), float)
            time.sleep(0.01)  # a thread that was woken needs the interpreter to look
            assert queue.take(quick, 0)
        queue.put(a_request(Service.BULK), float)
        assert taken.result(10)
    assert bulk.looks == 2, "once before it slept, once when its own row came"


def a_request(service: Service) -> PendingWork:
    request = PendingWork(fake_model(), service, None, finish)
    request.add_rows([Tokens(np.zeros(3, np.int32))])
    return request


def finish(*_: object) -> Outcomes:
    return Outcomes(np.empty(0, np.float32), np.empty(0, np.int32), np.empty(0, np.bool_))
