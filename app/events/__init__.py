"""Events: everything that happens to nodes and to the fleet, on a timeline."""
