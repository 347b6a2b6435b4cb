"""Bundles as packages."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from .output import quieten_monai, say


def zoo_pack(*names: str, output: str) -> None:
    """Write bundles as zip files that run by themselves, each with its SHA-256.

    Equal bundles give equal bytes.

    Input:
        NAMES: the bundles, by their names or folders.
    Output:
        output: the folder for the zip files.
    """
    from ..zoo import find_bundle, pack

    if not names:
        raise InputError("No bundle is named; needed are folders, or names of bundles.")
    quieten_monai()
    for bundle in [find_bundle(name) for name in names]:
        archive, left_out = pack(bundle, output)
        say(f"{archive}, and .sha256 beside it")
        if left_out:
            say(f"left out: {', '.join(left_out)}")


def zoo_verify(name: str) -> None:
    """Hold a bundle to the whole contract; it may be anybody's.

    What only reads comes first. Where that passes, the network and the workflows are built, and
    expressions in the configs run: verify only what you would run.

    Input:
        NAME: the bundle, by its name, folder or zip file.
    """
    from ..zoo import find_bundle, verify

    quieten_monai()
    failed = checks = 0
    # What is there is checked as it is: of a zip file its members, before it is unpacked.
    for check, failures in verify(name if Path(name).exists() else find_bundle(name)):
        if failures is None:
            say(f"no {check} beside it")
            continue
        checks += 1
        failed += bool(failures)
        for failure in failures:
            say(f"failed  {check}: {failure}")
        if not failures:
            say(f"passed  {check}")
    if failed:
        raise InputError(f"{name} fails {failed} of {checks} checks.")


def zoo_index(
    output: str = "model_zoo_index.json",
    zips: str | None = None,
    base_url: str | None = None,
    bundles: str | None = None,
) -> None:
    """Add packed bundles, or folders of unreleased ones, to an index; the rest stays.

    Output:
        output: the index, which is made if there is none.
    Released:
        zips: the folder with the zip files that zoo pack wrote.
        base_url: the address of the folder in which they will be.
    Not released:
        bundles: the folder with the bundles' folders.
    """
    from ..zoo import write_index

    say(f"{len(write_index(output, zips, base_url, bundles))} versions are in {output}")


def zoo_push(name: str, repo: str, dry_run: bool = True, private: bool = True) -> None:
    """Upload a bundle to the Hugging Face Hub (extra: hub).

    It only tells what it would upload, unless --dry_run False. The token is in $HF_TOKEN, or that
    of `hf auth login`.

    Input:
        NAME: the bundle, by its name or folder.
    Output:
        repo: where to, as owner/name.
        dry_run: only tell what would be uploaded.
        private: whether a repository that is made is private.
    """
    from ..zoo import find_bundle, push

    quieten_monai()
    upload = push(find_bundle(name), repo, dry_run, private)
    for file, size in upload.files.items():
        say(f"{size:12d}  {file}")
    done = "would be uploaded" if dry_run else "are uploaded"
    say(
        f"{len(upload.files)} files, {sum(upload.files.values())} bytes {done} to {upload.repo}, "
        f"version {upload.version}; docs/README.md becomes the model card"
    )
    if dry_run:
        say("--dry_run False uploads them")


def zoo_ship(
    name: str,
    checkpoint: str,
    kind: str,
    size: int | None = None,
    seed: int = 0,
    min_dice: float = 0.98,
) -> None:
    """Put a training's weights into a bundle, with a reference that verify repeats.

    The reference is what they make of a synthetic image.

    Input:
        NAME: the bundle, by its name or folder.
        checkpoint: the file of the training's weights; its settings go with them.
    Reference:
        kind: of the synthetic image, as the verb phantom draws it: ct, mr or cxr.
        size: its voxels or pixels across, by default the kind's own.
        seed: another one gives another image.
        min_dice: with less in a class, verify says that something is computed otherwise.
    """
    from ..zoo import find_bundle, ship

    if Path(name).is_file():
        raise InputError(f"{name} is a file; allowed are bundles by name or folder.")
    quieten_monai()
    weights, checksum, voxels = ship(find_bundle(name), checkpoint, kind, size, seed, min_dice)
    say(f"weights:   {weights}, {weights.stat().st_size} bytes")
    say(f"SHA-256:   {checksum}")
    say(f"reference: {', '.join(f'{n} voxels of {name}' for name, n in voxels.items())}")
