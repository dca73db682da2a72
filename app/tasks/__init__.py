"""Tasks: saved definitions of work, their schedules and templates, their runs over many hosts and what those wrote."""
