"""A WSGI application with paths that behave in ways that servers must cope with; served in place of the Manager."""

import os
import time

import psutil
import pymysql
from redis import Redis

from app.kernel import pki

STATUS = {200: "200 OK", 413: "413 Content Too Large", 503: "503 Service Unavailable"}


def application(environ, start_response):
    if environ["PATH_INFO"] == "/drip":
        start_response(STATUS[200], [("Content-Type", "text/plain")])
        return (b"x" * 65536 for _ in range(400))
    status, body = PATHS[environ["PATH_INFO"]](environ)
    start_response(STATUS[status], [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def hello(_environ):
    return 200, b"hello"


def body(environ):
    return 200, str(len(environ["wsgi.input"].read())).encode()


def late_body(environ):
    time.sleep(2.5)
    return body(environ)


def ignore(_environ):
    return 413, b"too large"


def big(_environ):
    return 200, b"x" * 20_000_000


def slow(_environ):
    time.sleep(1.5)
    return 200, b"slow"


def stuck(_environ):
    time.sleep(60)
    return 200, b"stuck"


def spin(_environ):
    """Lets nobody else work."""
    while True:
        pass


def held(environ):
    return 200, b"draining" if environ["ops.draining"].wait(50) else b"timeout"


def redis(_environ):
    Redis.from_url(os.environ["TINY_REDIS"]).blpop("nothing", timeout=1)
    return 200, b"ok"


def mysql(_environ):
    """Somebody listens there and never says anything."""
    try:
        pymysql.connect(host="127.0.0.1", port=int(os.environ["TINY_SILENT"]), read_timeout=1, connect_timeout=1)
    except pymysql.err.OperationalError:
        return 200, b"ok"
    return 503, b"it answered"


def processes(_environ):
    psutil.cpu_percent(interval=1)
    return 200, b"ok"


def peer(environ):
    certificate = environ["gunicorn.socket"].getpeercert(True)
    return 200, pki.fingerprint(certificate).encode() if certificate else b"nobody"


def pid(_environ):
    return 200, str(os.getpid()).encode()


PATHS = {
    "/" + function.__name__: function
    for function in (
        hello, body, late_body, ignore, big, slow, stuck, spin, held, redis, mysql, processes, peer, pid,
    )
}  # fmt: skip
