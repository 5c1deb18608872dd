"""Copy the files of links to this machine, and the masks that they need; each is checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from trimtab.checkpoints.tensors import hash_of_file
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.masked import mask_file_name
from trimtab.errors import MaskError, SyncError
from trimtab.masks.on_disk import open_mask
from trimtab.sync.chain import Chain, Link
from trimtab.sync.places import Place
from trimtab.sync.untrusted import OtherFileError


class NotThereError(SyncError):
    """The file of a link is not there, or is another one."""

    def __init__(self, message: str, link: Link) -> None:
        super().__init__(message)
        self.link = link


def fetch_masks(
    place: Place,
    chain: Chain,
    links: Sequence[Link],
    files: Sequence[Path],
    folder: Callable[[], Path],
) -> None:
    """Put the masks over which links are coded beside their files; each mask is fetched once.

    Args:
        place: The place.
        chain: Its list of versions.
        links: The links.
        files: Their files, which were fetched.
        folder: Returns where masks are kept; called when one is needed.

    Raises:
        NotThereError: A mask is not there, or not the one of its name.
        SyncError: The place cannot be reached.
    """
    for link, file in zip(links, files, strict=True):
        with DeltaFile(file) as delta:
            digest = delta.manifest.mask
        if digest is None:
            continue
        kept, beside = (each / mask_file_name(digest) for each in (folder(), file.parent))
        if not kept.exists():
            _fetch_mask(place, chain, link, digest, kept)
        if not beside.exists():
            try:
                beside.symlink_to(kept.absolute())
            except OSError:
                shutil.copyfile(kept, beside)


def _fetch_mask(place: Place, chain: Chain, link: Link, digest: str, target: Path) -> None:
    sizes = {mask.digest: mask.num_bytes for mask in chain.masks}
    try:
        is_there = digest in sizes and place.fetch(target.name, target, sizes[digest])
    except OtherFileError as error:
        raise NotThereError(str(error), link) from None
    found = None
    if is_there:
        try:
            with open_mask(target) as mask:
                found = mask.digest
        except MaskError:
            found = "damaged"
    if found != digest:
        target.unlink(missing_ok=True)
        raise NotThereError(
            f"{place}: {target.name}, over which {link.name} is coded, is "
            f"{found or 'not there'}: put it there again, or publish the run to another place",
            link,
        )


def fetch(place: Place, link: Link, folder: Path) -> Path:
    """Copy the file of a link to a folder.

    Raises:
        NotThereError: It is not there, or not the one that the list of versions names.
        SyncError: The place cannot be reached.
    """
    target = folder / link.name
    target.unlink(missing_ok=True)  # of a try that failed later
    try:
        is_there = place.fetch(link.name, target, link.num_bytes)
    except OtherFileError as error:
        raise NotThereError(str(error), link) from None
    if not is_there:
        raise NotThereError(
            f"{place}: {link.name}, which leads to version {link.version}, is not there: publish "
            "the run to another place",
            link,
        )
    if (found := hash_of_file(target)) != link.hash:
        target.unlink()
        raise NotThereError(
            f"{place}: {link.name} has xxh3-128 {found}, expected {link.hash}: it is damaged, or "
            "somebody else writes there",
            link,
        )
    return target


def fetch_route(
    place: Place, chain: Chain, starts: Collection[int | None], to: int, folder: Path
) -> tuple[tuple[Link, ...], list[Path]] | None:
    """Copy the files of the links of fewest bytes to a version, around those that are damaged.

    Returns:
        The links, and their files; None if no links lead there.

    Raises:
        SyncError: They would, but their files are damaged or not there.
    """
    problem: NotThereError | None = None
    while (path := chain.route(starts, to)) is not None:
        try:
            files = [fetch(place, link, folder) for link in path]
            fetch_masks(place, chain, path, files, lambda: folder)
            return path, files
        except NotThereError as error:
            problem, chain = error, chain.without(error.link)
    if problem is not None:
        raise problem
    return None
