"""The state of jobs: records, chunks, leases and the scripts that change them."""
