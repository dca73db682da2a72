"""Agents: the programs that Daemons supervise, what they are to do, how they are configured and how they fare."""
