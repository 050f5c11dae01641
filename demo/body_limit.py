"""Keeps requests small."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class TooLarge(Exception):
    """A request's body goes on beyond the limit."""


class BodyLimit:
    """Answers 413 to a request with a larger body, as soon as that shows, and to every upload.

    Gradio's own route for uploads writes to the disk, and nothing on the page uses it.

    Args:
        app: What answers the others.
        most: Bytes.
    """

    def __init__(self, app: App, most: int):
        self.app = app
        self.most = most

    @staticmethod
    def app_arguments(most: int) -> dict[str, Any]:
        """For `FastAPI`: this limit, and no pages that list the routes."""
        middleware = [Middleware(BodyLimit, most=most)]
        return {"middleware": middleware, "docs_url": None, "redoc_url": None, "openapi_url": None}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope.get("path", "").rstrip("/").endswith("/upload"):
            await refuse(send, b"this page takes no uploads")
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.most:
            await refuse(send)
            return
        came, answered = 0, False

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:
                raise TooLarge
            return message

        async def noticed(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, counted, noticed)
        except TooLarge:
            if not answered:
                await refuse(send)


async def refuse(send: Send, text: bytes = b"this request is too large") -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": text})
