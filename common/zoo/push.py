"""Bundles on the Hugging Face Hub."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ..errors import InputError, how_to_install
from .archives import unpack_archive
from .contract import WEIGHTS, config
from .pack import pack


class Upload(NamedTuple):
    """What goes to the Hub."""

    repo: str
    version: str
    files: dict[str, int]  # paths in the repository, and bytes


def push(bundle: str | Path, repo: str, dry_run: bool = True, private: bool = True) -> Upload:
    """Upload what `pack` packs, as one commit with the version as its tag.

    The bundle's docs/README.md becomes the model card, see `model_card`. Files of earlier versions
    that this one has not are removed from the repository, not from its history.

    Args:
        bundle: its folder.
        repo: the repository, as owner/name; it is made if there is none.
        dry_run: only tell what would be uploaded. Nothing is asked of the Hub.
        private: whether a repository that is made is private.

    Raises:
        InputError: `pack` refuses the bundle, the version is there already, huggingface_hub
            is not installed, or the Hub refuses.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repo)):
        raise InputError(f"repo is {repo!r}; allowed is a repository as owner/name.")
    if not dry_run and find_spec("huggingface_hub") is None:
        raise InputError(f"push needs huggingface_hub: {how_to_install('hub')}.")
    with TemporaryDirectory() as temporary:
        folder = unpack_archive(pack(bundle, temporary).archive, Path(temporary) / "unpacked")
        files = {
            file.relative_to(folder).as_posix(): file.stat().st_size
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        upload = Upload(repo, config(folder, "metadata")["version"], files)
        if not dry_run:
            _upload(folder, upload, private)
    return upload


def model_card(folder: Path) -> str:
    """A bundle's docs/README.md, and before it what the Hub reads, as `push_to_hf_hub` has it.

    But for the licence, which MONAI takes from LICENSE: that is the code's, and weights may have
    another by what they were trained with. Where there are weights it is ``weights_license`` of the
    metadata. And links to files of docs, and pictures, are as a folder higher, where the card is.

    Raises:
        InputError: ``weights_license`` is no identifier.
    """
    code = (folder / "LICENSE").read_text(encoding="utf-8", errors="replace")
    licence = "apache-2.0" if "Apache License" in code else "other"
    if (folder / WEIGHTS).is_file():
        licence = str(config(folder, "metadata").get("weights_license", licence)).lower()
    if not re.fullmatch(r"[a-z0-9.+-]+", licence):
        raise InputError(
            f"weights_license of metadata.json is {licence!r}; allowed are identifiers, such as "
            "CC-BY-SA-4.0."
        )
    head = f"---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: {licence}\n---\n"
    docs = folder / "docs"
    beside = {file.relative_to(docs).as_posix() for file in docs.rglob("*")}

    def from_above(link: re.Match[str]) -> str:
        return f"](docs/{link[1]})" if link[1].partition("#")[0] in beside else link[0]

    readme = (docs / "README.md").read_text(encoding="utf-8")
    return head + re.sub(r"\]\(([^()\s]+)\)", from_above, readme)


def _upload(folder: Path, upload: Upload, private: bool) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    hub = HfApi()
    (folder / "README.md").write_text(model_card(folder), encoding="utf-8", newline="\n")
    try:
        try:
            tags = [tag.name for tag in hub.list_repo_refs(upload.repo).tags]
        except RepositoryNotFoundError:
            tags = []
        if upload.version in tags:
            raise InputError(
                f"{upload.repo} has version {upload.version} already; a version does not change "
                "once it is released: raise it in metadata.json."
            )
        hub.create_repo(upload.repo, private=private, exist_ok=True)
        # One commit: the Hub's upload of a folder makes several of many files.
        files = {x.relative_to(folder).as_posix(): x for x in folder.rglob("*") if x.is_file()}
        gone = set(hub.list_repo_files(upload.repo)) - files.keys() - {".gitattributes"}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationDelete(name) for name in sorted(gone)),
            *(CommitOperationAdd(name, file) for name, file in sorted(files.items())),
        ]
        said = f"Version {upload.version}"
        commit = hub.create_commit(upload.repo, operations, commit_message=said)
        hub.create_tag(upload.repo, tag=upload.version, revision=commit.oid, exist_ok=True)
    # Its errors' base is that of the HTTP client, of which newer versions have another.
    except (*HfHubHTTPError.__bases__, HFValidationError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{upload.repo} cannot be uploaded to ({reason}).") from error
