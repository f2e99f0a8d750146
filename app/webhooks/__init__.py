"""Webhooks after the Standard Webhooks text: the end of a job is told to an address of its owner.

`courier` moves deliveries on; `targets` decides where we connect; `sending` sends; `signing` signs. What is to be told
and when is kept by `tasks.jobs.outbox`.
"""
