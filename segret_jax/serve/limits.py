"""What the server accepts, and the answer to what it refuses."""

from dataclasses import dataclass

MOST_PIXELS = 89_000_000  # beyond it Pillow itself refuses


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the server accepts.

    Attributes:
        max_bytes: Of a photograph's file.
        max_pixels: Of a photograph.
        queue: Photographs that wait, are received or are segmented at one time.
        per_client: Those of one client, which is an address.
        upload_seconds: How long a client may take to send a photograph.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    queue: int = 128
    per_client: int = 64
    upload_seconds: float = 60.0


class RefusedError(Exception):
    """A request that is refused: an HTTP status, and one line with the value and the remedy."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
