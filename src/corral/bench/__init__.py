"""The benchmark: measures any OpenAI-compatible or Ollama server."""
