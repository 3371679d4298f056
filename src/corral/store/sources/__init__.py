"""Where a model's file can come from: one file a kind of source."""
