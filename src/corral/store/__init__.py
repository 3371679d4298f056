"""Models on disk: names, manifests and blobs, and where they come from."""
