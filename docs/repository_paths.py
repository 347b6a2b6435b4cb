"""MkDocs' hook that gives the site's pages their paths in the repository: one link serves both.

MkDocs follows links by the paths of sources. Those of docs/ are below docs/ there, as in the
repository, and what lies beside docs/ is added; addresses stay as they are, with docs/ at the root.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bundles/*/docs/*")
# The front page is docs/index.md's.
ADDRESSES = {"README.md": "overview.html"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    places = {}
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
            places[f"docs/{file.src_uri}"] = file.dest_uri
    for pattern in BESIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            places[name] = ADDRESSES.get(name)
    for name, address in places.items():
        files.append(
            File(name, str(ROOT), config.site_dir, config.use_directory_urls, dest_uri=address)
        )
    return files
