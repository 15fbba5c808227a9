"""The ledger, the only truth of a sweep, and its history as trials."""
