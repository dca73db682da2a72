"""Nodes: the hosts of the fleet, their identity, enrolment, groups, tags, labels and selection."""
