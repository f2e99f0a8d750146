"""From a corpus to where its vectors shall be: sources, checks of rows, sinks, and the run that survives a kill.

Owns all that the command line does with data; nothing is printed here. Needs pyarrow, the extra `parquet`.
"""
