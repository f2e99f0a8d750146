"""What OpenAI's batches become: lines are checked and cut into jobs, and finished jobs become output files.

Owns everything that is particular to batches in the web tier. The records are in `tasks.batches`, the bytes in
`tasks.files`, and the work is done by ordinary jobs: nothing here computes.
"""
