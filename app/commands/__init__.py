"""Commands: orders for single hosts, from the database over the gateway to the host and back."""
