"""Text to tokens and back: tokenisers, detokenising, chat templates."""
