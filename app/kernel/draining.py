"""Tells requests that wait for something that this process is about to stop, so that they answer now."""

from gevent.event import Event

draining = Event()
"""Set once, when the server is asked to stop. Requests find it in their WSGI environment under ENVIRON_KEY."""

ENVIRON_KEY = "ops.draining"
