"""Side-by-side measurements of the service, its engine and its peers on one machine; `python -m benchmarks`."""
