"""Webhooks after the Standard Webhooks text: signed calls about the ends of jobs.

`targets` decides where we connect; `sending` sends; `signing` signs. What is to be sent and when is in the outbox
(`tasks.jobs.outbox`), which `app.jobs.webhooks` empties.
"""
