"""What bundles there are, and how to get and train one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from textwrap import TextWrapper
from typing import Any, NoReturn

from .output import quieten_monai, say, table

_WIDTH = 100


def list_bundles(index: str | None = None) -> None:
    """List the bundles that there are: task, version, weights, size, and what is released.

    They are those of the current folder, of its folder bundles, those that came with this package,
    and those that an index has to download.

    Input:
        index: another index than the one here or of this package, a file or an address.
    """
    from ..zoo import HEADER, catalogue, catalogue_rows

    quieten_monai()
    found = catalogue(index)
    say(table(HEADER, catalogue_rows(found)))
    say()
    say("python -m common info BUNDLE says what one of them is, does and takes,")
    say("python -m common networks what the networks cost.")
    for bundle in found:
        if bundle.problem is not None:
            say(f"{bundle.name} cannot be read: {bundle.problem}")


def info(name: str, index: str | None = None) -> None:
    """Say what a bundle is: its task, image, classes, weights, papers, and where it is.

    Input:
        NAME: the bundle, by its name, folder or zip file.
        index: another index than the one here or of this package, a file or an address.
    """
    from ..zoo import describe

    quieten_monai()
    found = describe(name, index)
    width = max(map(len, found)) + 2
    wrapper = TextWrapper(_WIDTH, subsequent_indent=" " * width, break_long_words=False)
    wrapper.break_on_hyphens = False
    for key, lines in found.items():
        for number, line in enumerate(lines):
            head = f"{key + ':':{width}}" if number == 0 else " " * width
            say("\n".join(wrapper.wrap(head + line)))


def train(
    name: str,
    data: str,
    output: str | None = None,
    config_file: Any = "configs/train.json",
    **overrides: str,
) -> None:
    """Train a bundle on a data set: print the command of monai.bundle, and run it.

    A bundle that is named by its folder is trained in it. One that is named by its name or zip file
    is copied into a folder of its name in the current folder, and trained there.

    Input:
        NAME: the bundle, by its name, folder or zip file.
        data: the data set: a folder in any of the layouts of docs/data.md.
    Output:
        output: a folder to train in, in place of these; its models/model.pt are the weights.
    Training:
        config_file: a config, or several, as "['configs/train.json','plan.json']".
        overrides: what else the config may be given, such as --max_epochs 10 or --resume True.
    """
    from ..workflows import prepare_training

    quieten_monai()
    command = prepare_training(name, data, output, config_file, overrides)
    say(shlex.join(command))
    _become(command)


def new_bundle(name: str, network: Any, classes: str, output: str = ".") -> None:
    """Write a new bundle to make your own, which trains at once.

    What is left for you to write is marked by FILL IN. By its modality it is for volumes (ct, mr,
    pet) or for pictures (cxr, xr, us). CONTRIBUTING.md walks through all of it.

    Input:
        NAME: ANATOMY_MODALITY_NETWORK_segmentation, of ct, mr, pet, cxr, xr or us.
        network: a name of configs/networks, as segresnet, or a class, as SegResNet.
        classes: names without the background's, as liver,tumour.
    Output:
        output: the folder that will have the bundle's.
    """
    from ..zoo import new_bundle as make

    quieten_monai()
    made = make(name, network, classes, output)
    say(f"{name} is in {made.folder}")
    for place in made.to_fill_in:
        say(f"to fill in: {place}")


def download(
    name: str,
    version: str | None = None,
    index: str | None = None,
    output: str = ".",
    overwrite: bool = False,
) -> None:
    """Download a released bundle, verify its SHA-256 and weights, and unpack it.

    A download that broke off goes on. An old version is replaced, unless that would lose files of
    yours (--overwrite True).

    Input:
        NAME: the bundle's, as an index has it.
        version: by default the newest that is released.
        index: another index than the one here or of this package, a file or an address.
    Output:
        output: the folder that will have the bundle's.
        overwrite: replace a bundle's folder also where that loses files of yours.
    """
    from ..zoo import install

    say(f"{name} is in {install(name, version, index, output, overwrite)}")


def _become(command: list[str]) -> NoReturn:
    """Run a command in place of this process, so that signals and exit codes are the command's."""
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(command[0], command)
    sys.exit(subprocess.call(command))
