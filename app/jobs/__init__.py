"""The endpoints of jobs: create, read, follow, results."""
