"""Which models are loaded, and who is using them."""
