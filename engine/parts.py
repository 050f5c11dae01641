"""What parts of a recipe declare of themselves."""

from typing import Any


def needs_pixels(part: Any) -> bool:
    """Whether a part edits images, and so must see them before they are encoded."""
    return getattr(part, "needs_pixels", False)


def needs_images(part: Any) -> bool:
    """Whether a part looks at the caller's images."""
    return getattr(part, "needs_images", False)


def about_images(part: Any) -> bool:
    """Whether a part does nothing where a prompt has no image."""
    return getattr(part, "about_images", False) or needs_pixels(part) or needs_images(part)
