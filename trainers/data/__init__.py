"""From files or the hub to tokenized rows."""
