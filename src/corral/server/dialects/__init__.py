"""One file an API: decode its request to a Generation, encode events to its replies."""
