"""The check of image files before training: every file, or a sample of a large split, is decoded once."""

import logging

from pbd.data import feeds
from pbd.data.arrays import RawSplits
from pbd.data.images import FileImages
from pbd.errors import BadInputError
from pbd.system import watchdog

MOST_NAMED = 10
"""How many damaged files a message names."""
_log = logging.getLogger(__name__)


@watchdog.waiting()
def check_files(raw: RawSplits) -> None:
    """Decode the image files of all splits, and log how many are left out; images in memory need no check.

    Raises:
        BadInputError: files are damaged, or no images.
        MissingInputError: a file cannot be read.
    """
    splits = [split.images for split in (raw.train, raw.validation, raw.test) if split is not None]
    stores = [images for images in splits if isinstance(images, FileImages)]
    unread = [path for images in stores for path in images.unread]
    if unread:
        _log.warning(
            "%d image files, such as %r, are left out: their format is not read. Convert them to PNG or JPEG.",
            len(unread),
            unread[0],
        )
    paths = [path for images in stores for path in images.checked_paths]
    if not paths:
        return
    damaged = feeds.current().damaged_files(paths)
    if damaged:
        named = ", ".join(map(repr, damaged[:MOST_NAMED]))
        more = f" and {len(damaged) - MOST_NAMED} more" if len(damaged) > MOST_NAMED else ""
        raise BadInputError(
            f"an image file must be a whole JPEG, PNG, BMP or GIF. Received: {len(damaged)} of {len(paths)} files that "
            f"cannot be decoded: {named}{more}. Remove them, or save them again as PNG."
        )
