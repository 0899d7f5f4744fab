"""What protects every answer: security headers, and only requests of the server's own pages."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segret_jax.errors import shorten

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


class Guard:
    """Refuses requests under foreign names and from foreign pages; adds security headers.

    A page of another site could otherwise reach a server on this machine through the browser of
    its user: by a name that leads here (DNS rebinding), or by a request that needs no permission.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None):
        """Wrap an application.

        Args:
            app: It.
            hosts: The names by which it may be called, in small letters; None: any.
        """
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if fault := self._fault(Headers(scope=scope)):
            status, text = fault
            return await JSONResponse({"error": text}, status)(scope, receive, send_guarded)
        await self._app(scope, receive, send_guarded)

    def _fault(self, headers: Headers) -> tuple[int, str] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts is not None and _name(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            return 421, (
                f"this server is not called {shorten(host)!r} but {known}: start it with "
                "--allow-host NAME to call it otherwise"
            )
        if origin is not None and _netloc(origin) != host:
            return 403, f"the page {shorten(origin)} may not use this server: open its own page"
        return None


def _netloc(address: str) -> str:
    """Return host and port of an address; nothing if there are none."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
