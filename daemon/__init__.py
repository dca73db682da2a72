"""The Daemon: one small root process on every managed host. It measures, keeps the link and runs commands."""
