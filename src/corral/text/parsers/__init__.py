"""What a reply's tokens mean: one file for each way in which models mark it."""
