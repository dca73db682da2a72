"""Measurements of the running product. Each module is a command of its own; figures without a machine mean nothing."""
