"""OpenAI's Files and Batches: files of requests, computed as jobs, answered as files."""
