"""A user's images, whichever way they are kept."""

from pathlib import Path

from jaxgen.training.image_folder import ImageFolder, image_folder
from jaxgen.training.image_records import ImageRecords, image_records, record_files
from jaxgen.training.scan import Share


def open_images(
    path: str | Path,
    side: int,
    *,
    channels: int = 3,
    index: str | Path | None = None,
    threads: int | None = None,
    share: Share | None = None,
) -> ImageRecords | ImageFolder:
    """Open ArrayRecord files if a path means such, a folder of PNG and JPEG files otherwise.

    The arguments are those of `image_folder` and `image_records`.

    Raises:
        ValueError: if there is nothing of either kind, or nothing that can be decoded.
    """
    open_them = image_records if record_files(path) else image_folder
    if open_them is image_folder:
        _check_folder(Path(path).absolute())
    return open_them(path, side, channels=channels, index=index, threads=threads, share=share)


def _check_folder(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if not path.is_dir():
        raise ValueError(f"{path} is neither a folder of images nor an ArrayRecord file")
