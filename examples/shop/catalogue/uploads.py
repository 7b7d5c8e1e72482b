"""What may be uploaded: small pictures, judged by their first bytes and not by their name."""

import uuid

KINDS = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".gif": b"GIF8"}


class RefusedUpload(ValueError):
    """The file is too big or no picture of a kind that is accepted."""


def accepted_name(head: bytes, size: int, limit: int) -> str:
    """A fresh name with the extension that the content has; RefusedUpload otherwise.

    size and limit are in bytes.
    """
    if size > limit:
        raise RefusedUpload(f"The file has {size} bytes; at most {limit} are accepted.")
    for extension, magic in KINDS.items():
        if head.startswith(magic):
            return f"{uuid.uuid4().hex}{extension}"
    raise RefusedUpload("Only PNG, JPEG and GIF pictures are accepted.")
