import json
import shutil
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
    with pytest.raises(InputError, match="it has no bundle b; it has a"):
        find_entry(index, "b", None, "it")


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
    ],
)
def test_unusable_indices(text: str, reason: str):
    with pytest.raises(InputError, match=reason):
        parse_index(text, "it")
