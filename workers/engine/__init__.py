"""What queues and batches work for the loaded models. Knows nothing of Celery or Redis."""

from workers.engine.device import DeviceEngine

__all__ = ["DeviceEngine"]
