"""The engine: sequences, KV blocks, the scheduler, and the process that runs them."""
