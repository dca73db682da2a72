"""Whether to answer with a fragment: only to htmx itself, not to boosted links or a history being restored."""

from urllib.parse import urlsplit

from flask import Response, render_template, request


def wants_fragment() -> bool:
    header = request.headers.get
    return (
        header("HX-Request") == "true"
        and header("HX-Boosted") != "true"
        and header("HX-History-Restore-Request") != "true"
    )


def fragment_of(request_target: str) -> bool:
    """Whether htmx asks for exactly this part of the page."""
    return wants_fragment() and request.headers.get("HX-Target") == request_target


def page_around_fragment() -> str:
    """The path of the page in which htmx asks, with its query; it says so itself, so it is not to be trusted."""
    parts = urlsplit(request.headers.get("HX-Current-URL", ""))
    return f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"


def vary_by_htmx(response: Response) -> Response:
    response.vary.update(("HX-Request", "HX-Target", "Cookie", "Accept-Language"))
    return response


def render_part(target: str, fragment: str, whole: str, **context: object) -> str:
    """The fragment when htmx asks for `target`, else the page that includes it."""
    return render_template(fragment if fragment_of(target) else whole, **context)
