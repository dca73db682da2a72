"""The wire between Manager and Daemon: messages, states, signing, version and errors.

Standard library only, Python 3.9. Everybody imports it; it imports nobody. `docs/protocol.md` says the same in prose.
"""
