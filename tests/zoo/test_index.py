import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from common.errors import InputError
from common.zoo import write_index
from common.zoo.archives import sha256
from common.zoo.index import find_entry, parse_index

from ..conftest import REPOSITORY
from .conftest import NAME, edit, release

URL = "https://example.org/releases"
INDEX = REPOSITORY / "model_zoo_index.json"


def test_repository_lists_every_bundle_at_its_version():
    """Written by `python -m common zoo index --bundles bundles`."""
    index = parse_index(INDEX.read_bytes(), str(INDEX))
    assert list(index) == sorted(index)
    expected = set()
    for file in REPOSITORY.glob("bundles/*/configs/metadata.json"):
        name, version = file.parents[1].name, json.loads(file.read_text())["version"]
        expected.add(f"{name}_v{version}")
        entry = find_entry(index, name, version, str(INDEX))
        if entry.checksum is None:
            assert REPOSITORY / entry.source == file.parents[1]
        assert find_entry(index, name, None, str(INDEX)).version <= version
    released = {key for key, entry in index.items() if "checksum" in entry}
    assert expected <= index.keys()
    assert index.keys() - expected <= released, "a version that is not released has no folder"


def test_releases_are_added_and_stay(packed: Path, tmp_path: Path):
    output = tmp_path / "index.json"
    (tmp_path / "zips").mkdir()
    shutil.copy(packed, tmp_path / "zips")
    key = f"{NAME}_v0.1.0"
    entry = {"checksum": sha256(packed), "source": f"{URL}/{packed.name}"}
    assert write_index(output, tmp_path / "zips", f"{URL}/") == {key: entry}
    assert json.loads(output.read_text()) == {key: entry}

    other = {"checksum": "0" * 64, "source": f"{URL}/{NAME}_v0.0.9.zip"}
    output.write_text(json.dumps({f"{NAME}_v0.0.9": other}))
    assert write_index(output, tmp_path / "zips", URL) == {f"{NAME}_v0.0.9": other, key: entry}
    assert write_index(output, tmp_path / "zips", "http://other")[key] == {
        "checksum": sha256(packed),
        "source": f"http://other/{packed.name}",
    }
    before = output.read_text().replace(sha256(packed), "1" * 64)
    output.write_text(output.read_text().replace(sha256(packed), sha256(packed).upper()))
    assert write_index(output, tmp_path / "zips", URL)[key] == entry
    output.write_text(before)
    with pytest.raises(InputError, match=rf"has {'1' * 64} for {NAME}_v0\.1\.0; a version does"):
        write_index(output, tmp_path / "zips", URL)
    assert output.read_text() == before


def test_versions_that_are_not_released(bundle: Path, tmp_path: Path):
    output = tmp_path / "index.json"
    released = {"checksum": "0" * 64, "source": f"{URL}/{NAME}_v0.1.0.zip"}
    folder = {"source": f"work/{NAME}"}
    assert write_index(output, bundles=bundle.parent) == {f"{NAME}_v0.1.0": folder}
    release(bundle, "0.2.0")
    assert write_index(output, bundles=bundle.parent) == {f"{NAME}_v0.2.0": folder}
    output.write_text(json.dumps({f"{NAME}_v0.1.0": released}))
    index = write_index(output, bundles=bundle.parent)
    assert index == {f"{NAME}_v0.1.0": released, f"{NAME}_v0.2.0": folder}
    assert find_entry(index, NAME, None, "it").version == "0.1.0"
    output.write_text(json.dumps({f"{NAME}_v0.2.0": released}))
    assert write_index(output, bundles=bundle.parent) == {f"{NAME}_v0.2.0": released}


def test_newest_version_is_by_number():
    index = {f"a_v{x}": {"checksum": "c", "source": "s"} for x in ("0.10.0", "0.9.0", "0.2.0")}
    assert find_entry(index, "a", None, "it").version == "0.10.0"
    assert find_entry(index, "a", "0.2.0", "it").version == "0.2.0"
    with pytest.raises(InputError, match=r"no version 1\.0\.0 of a; it has 0\.2\.0, 0\.9\.0, 0\.1"):
        find_entry(index, "a", "1.0.0", "it")
    with pytest.raises(InputError, match="it has no bundle b; allowed are a"):
        find_entry(index, "b", None, "it")
    for name in "abcd":
        index[f"{name}_v2.0.0-rc.1"] = {"checksum": "c", "source": "s"}
    assert find_entry(index, "a", None, "it").version == "0.10.0"
    assert find_entry(index, "a", "2.0.0-rc.1", "it").version == "2.0.0-rc.1"
    assert find_entry(index, "b", None, "it").version == "2.0.0-rc.1"


def test_checksums_of_any_case():
    index = parse_index(json.dumps({"a_v0.1.0": {"checksum": "AB" * 32, "source": URL}}), "it")
    assert find_entry(index, "a", None, "it").checksum == "ab" * 32


def test_unusable_arguments(packed: Path, bundle: Path, tmp_path: Path):
    output, zips = tmp_path / "index.json", tmp_path / "zips"
    with pytest.raises(InputError, match="Neither zips nor bundles"):
        write_index(output)
    with pytest.raises(InputError, match="base_url is None"):
        write_index(output, packed.parent)
    with pytest.raises(InputError, match="base_url is ftp://a"):
        write_index(output, packed.parent, "ftp://a")
    with pytest.raises(InputError, match="There is no zip file in"):
        write_index(output, zips, URL)
    with pytest.raises(InputError, match="There is no bundle in"):
        write_index(output, bundles=zips)
    zips.mkdir()
    shutil.copy(packed, zips / "renamed.zip")
    with pytest.raises(InputError, match=rf"renamed\.zip holds {NAME}_v0\.1\.0; allowed is"):
        write_index(output, zips, URL)
    edit(bundle, "metadata", lambda x: x.update(version="new"))
    with pytest.raises(InputError, match="has the version new"):
        write_index(output, bundles=bundle.parent)
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"a": {"source": "s"}}', "has the entry 'a'"),
        ('{"../a_v0.1.0": {"source": "s"}}', "has the entry '../a_v0.1.0'"),
        ('{"a_v0.1.0": "s"}', "has the entry 'a_v0.1.0'"),
        ('{"a_v0.1.0": {"checksum": "c"}}', "has the entry 'a_v0.1.0'"),
        ('{"a_v0.1.0": {"source": "s", "checksum": 1}}', "has the entry 'a_v0.1.0'"),
        ('{"a_v01.0.0": {"source": "s"}}', "has the entry 'a_v01.0.0'"),
        ('{"a_v1.0.0-01": {"source": "s"}}', "has the entry 'a_v1.0.0-01'"),
        ('{"a_v1.0.0-": {"source": "s"}}', "has the entry 'a_v1.0.0-'"),
        ('{"a_v\u0661.0.0": {"source": "s"}}', "has the entry 'a_v\u0661.0.0'"),
        ('{"CON_v0.1.0": {"source": "s"}}', "has the entry 'CON_v0.1.0'"),
        ('{"é_v0.1.0": {"source": "s"}}', "has the entry 'é_v0.1.0'"),
        ('{"a_v0.1.0": ' + "[" * 200 + "]" * 200 + "}", "it is nested too deeply; allowed are 100"),
        ("[" * 100_000, "it is nested too deeply; allowed are 100"),
        ('{"a":' * 100_000, "it is nested too deeply; allowed are 100"),
        ('{"a_v0.1.0": "' + "s" * 10_000 + '"}', "has the entry 'a_v0.1.0': 's+[.]{3}s+'; allowed"),
        ('{"a_v0.1.0": {"source": "s", "source": "t"}}', "it has 'source' twice; allowed is once"),
        ('{"a_v0.1.0": {"source": "s"}, "a_v0.1.0": {"source": "t"}}', "it has 'a_v0.1.0' twice"),
    ],
)
def test_unusable_indices(text: str, reason: str):
    with pytest.raises(InputError, match=reason) as error:
        parse_index(text, "it")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "source",
    [
        "",
        "ftp://example.org/a.zip",
        "http://[::1/a.zip",
        "http:///a.zip",
        "http://example.org:port/a.zip",
        "https://example.org/a b.zip",
        "https://example.org/a\nb.zip",
        "https://exämple.org/a.zip",
        "URL:file:///a.zip",
        "data:application/zip;base64,UEsFBg==",
    ],
)
def test_unusable_sources(source: str):
    text = json.dumps({"a_v0.1.0": {"source": source, "checksum": "0" * 64}})
    with pytest.raises(
        InputError, match=r"it has for a_v0\.1\.0 the source '.*'; allowed are http"
    ):
        parse_index(text, "it")


def test_outputs_that_cannot_be_written(packed: Path, tmp_path: Path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder", "none/index.json"):
        with pytest.raises(InputError, match=f"{name} cannot be written"):
            write_index(tmp_path / name, packed.parent, URL)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "{}"
    with pytest.raises(InputError, match=r"base_url is http://\[; allowed are http"):
        write_index(tmp_path / "index.json", packed.parent, "http://[")


@pytest.mark.parametrize("metadata", ["[" * 100_000, '{"version": "0.1.0", "version": "0.2.0"}'])
def test_archives_without_metadata_of_a_bundle(tmp_path: Path, metadata: str):
    with zipfile.ZipFile(tmp_path / f"{NAME}_v0.1.0.zip", "w") as archive:
        archive.writestr(f"{NAME}/configs/metadata.json", metadata)
    with pytest.raises(
        InputError, match=r"metadata\.json (is nested too deeply|has 'version' twice)"
    ):
        write_index(tmp_path / "index.json", tmp_path, URL)


def test_the_checksum_is_that_of_what_was_read(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where an archive is replaced between a look at its members and one at its checksum."""
    archive, expected = tmp_path / packed.name, sha256(packed)
    shutil.copy(packed, archive)
    module = sys.modules["common.zoo.index"]
    check = module.check_archive

    def replaced(content: object) -> str:
        found = check(content)
        archive.unlink(missing_ok=True)
        with zipfile.ZipFile(archive, "w") as other:
            other.writestr(f"{NAME}/configs/metadata.json", '{"version": "0.1.0"}')
        return found

    monkeypatch.setattr(module, "check_archive", replaced)
    (entry,) = write_index(tmp_path / "index.json", tmp_path, URL).values()
    assert entry["checksum"] == expected
