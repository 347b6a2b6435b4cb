import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

import common
from common.errors import InputError, input_error_in
from common.zoo import check_version
from common.zoo.archives import unpack_archive
from common.zoo.versions import precedence

from .conftest import edit


def test_this_version_is_allowed_and_no_other():
    check_version(common.__version__)
    with pytest.raises(InputError, match=r"needs version 9\.0\.0 of .*common, and \S+ is loaded"):
        check_version("9.0.0")


def test_precedence_is_that_of_semantic_versions():
    ascending = [
        "0.9.0",
        "0.10.0",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "1.9.0",
        "1.10.0",
        f"1.{'9' * 5000}.0",
        f"1.1{'0' * 5000}.0",
    ]
    assert sorted(sorted(ascending), key=precedence) == ascending
    assert precedence("1.0.0+build.2") == precedence("1.0.0+build.1") == precedence("1.0.0")


@pytest.mark.parametrize(
    "text",
    [
        "1",
        "1.0",
        "1.0.0.0",
        "v1.0.0",
        "01.0.0",
        "1.0.0-",
        "1.0.0-a..b",
        "1.0.0-01",
        "1.0.0+",
        "\u0661.0.0",
        "-1.0.0",
        "1.0.0-a_b",
        "latest",
        "",
        "1.0.0 ",
        "1.0.0\n",
    ],
)
def test_no_semantic_versions(text: str):
    with pytest.raises(InputError, match=r"The version is '.*'; allowed are semantic versions"):
        precedence(text)


def test_networks_of_another_version_are_not_built(bundle: Path):
    """As a program that parses the config alone sees it: MONAI Label, Slicer, monai.bundle.load."""
    edit(
        bundle,
        "inference",
        lambda x: x["network_def"]["default"]["_requires_"].update(required="9.0.0"),
    )
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    with pytest.raises(RuntimeError) as refused:
        parser.get_parsed_content("network")
    assert "needs version 9.0.0" in str(input_error_in(refused.value))


@pytest.mark.slow
def test_of_two_versions_in_one_process_the_second_is_refused(packed: Path, tmp_path: Path):
    """As MONAI Label loads bundles: each one's folder is on the path while it is read."""
    folders = [unpack_archive(packed, tmp_path / name) for name in ("first", "second")]
    init = folders[1] / "common/__init__.py"
    init.write_text(init.read_text().replace(common.__version__, "9.0.0"))
    edit(
        folders[1],
        "inference",
        lambda x: x["network_def"]["default"]["_requires_"].update(required="9.0.0"),
    )
    program = f"""
import sys
from monai.bundle import ConfigParser
for folder in {[str(folder) for folder in folders]}:
    sys.path.insert(0, folder)
    parser = ConfigParser()
    parser.read_config(folder + "/configs/inference.json")
    print(type(parser.get_parsed_content("network_def")).__name__, flush=True)
    sys.path.remove(folder)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "LightMUNet\n"
    assert f"needs version 9.0.0 of the package common, and {common.__version__}" in done.stderr
    assert f"from {folders[0] / 'common'}" in done.stderr
