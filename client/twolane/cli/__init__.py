"""The command `twolane`.

Owns options, what a person sees and what a machine reads; the work is done by `twolane.client` and `twolane.transfer`.
"""
