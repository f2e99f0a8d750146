"""Bytes outside Redis: a folder or an object store."""
