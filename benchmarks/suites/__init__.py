"""The suites: each measures one thing that the project promises, `run(bench)` by `run(bench)`."""
