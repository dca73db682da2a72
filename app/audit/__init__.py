"""Audit: who changed or was refused what, in a chain of rows that shows when somebody touched it."""
