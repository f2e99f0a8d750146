"""Texts and pairs into token IDs."""
