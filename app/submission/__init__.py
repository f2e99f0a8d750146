"""The one place that decides whether work is answered now or queued as a job."""
