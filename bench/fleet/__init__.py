"""A fleet of simulated Daemons over the real wire, for sizing an installation: `python -m bench.fleet --help`."""
