"""Our own engine in a process of its own, without web, store or Celery: what the device side can do at most.

Loaded by `benchmarks.stacks.host`.
"""

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from config.catalog import load_catalog
from config.settings import Settings
from tasks.engine import Outcomes, Work
from tasks.lanes import Service
from workers.engine import DeviceEngine
from workers.models.registry import load_models

__all__ = ["BareEngine", "Fp32Engine"]

_WORK_ITEMS = 1500  # below `engine_max_tokens`, and like the peers it sees many texts at once


class BareEngine:
    """`DeviceEngine.submit` in bulk or interactive, as a worker would call it.

    Args:
        model: name of the card.
        catalog_file: where the card is, if it is not a built-in one.
        data_dir: folder for exported models.
        settings: further settings by field name.
        work_items: items of one `Work`; two are in flight at a time, as a worker keeps them.
    """

    def __init__(
        self,
        model: str,
        data_dir: str,
        catalog_file: str | None = None,
        work_items: int = _WORK_ITEMS,
        settings: dict[str, Any] | None = None,
    ) -> None:
        extra = Path(catalog_file) if catalog_file else None
        chosen = Settings(
            _env_file=None, models=(model,), data_dir=Path(data_dir), catalog_file=extra, **(settings or {})
        )
        card = load_catalog(extra).find(model)
        if card is None:
            raise ValueError(f"no card is named {model}")
        self._model, self._work_items = card.name, work_items
        self._engine = DeviceEngine(chosen, load_models([card], chosen))
        self._engine.warm_up()

    def run(self, items: list[Any]) -> NDArray[np.float32]:
        """Return (n, d) embeddings of texts or (n,) scores of [query, document] pairs.

        Raises:
            RuntimeError: an item has no result, which would make the time worthless.
        """
        service = Service.INTERACTIVE if len(items) == 1 else Service.BULK
        parts: list[Outcomes] = []
        waiting: list[Future[Outcomes]] = []
        for start in range(0, len(items), self._work_items):
            waiting.append(self._engine.submit(self._make_work(items[start : start + self._work_items], service)))
            if len(waiting) == 2:
                parts.append(waiting.pop(0).result())
        parts += [future.result() for future in waiting]
        if any(part.errors for part in parts):
            raise RuntimeError(f"items failed: {[part.errors for part in parts if part.errors][:3]}")
        return np.concatenate([part.values for part in parts])

    def _make_work(self, items: list[Any], service: Service) -> Work:
        if isinstance(items[0], str):
            return Work(self._model, "embeddings", items, service=service)
        queries, documents = [pair[0] for pair in items], [pair[1] for pair in items]
        return Work(self._model, "rerank", documents, queries, service=service)


class Fp32Engine(BareEngine):
    """The same in float32, to tell what precision gives and what batching gives."""

    def __init__(self, model: str, data_dir: str, catalog_file: str | None = None) -> None:
        super().__init__(model, data_dir, catalog_file, settings={"dtype": "float32"})
