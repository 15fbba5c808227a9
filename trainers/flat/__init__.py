"""Rows that lie one after another in one sequence: their attention, and products of each lane."""
