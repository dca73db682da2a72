"""Metrics: what hosts measured, kept raw and rolled up, for charts, the API and Prometheus."""
