"""The packed backend: rows one after the other without padding, through a forward pass of our own over loaded weights.

Owns that forward pass for BERT-like encoders, ModernBERT and Qwen decoders, what makes vectors and scores of it, its
recording as CUDA graphs, and the check that it computes what the padded model computes. Loads no weights (`weights`).
"""
