"""The benchmark: drives any OpenAI-compatible or Ollama server, and tells how it does."""
