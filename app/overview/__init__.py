"""The dashboard, the page of one host, live mode and search: composed of what the rooms below know."""
