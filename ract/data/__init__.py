"""From the text a user names to batches of token numbers."""
