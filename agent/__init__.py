"""The task agent: executes scripts, file and configuration work and service control on one host.

Standard library only in the resident process, Python 3.9. It imports nobody but `protocol`.
"""
