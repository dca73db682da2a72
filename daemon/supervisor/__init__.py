"""Supervision of any number of local programs: `policy` decides, `Supervisor` acts, `sh` is each program's parent."""
