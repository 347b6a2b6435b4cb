"""Parameters of the networks to compare with, as configs/networks has them: docs/comparing.md.

    python -m benchmarks.parameters

One channel in, for patches of the 3D liver bundle (three classes) and images of the lung bundle
(two), as their configs stand; "-" where there is no such network.
"""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser

from common.cli.output import say, table
from common.zoo.contract import compared

_BUNDLES = Path(__file__).parents[1] / "bundles"
_IN = {"3D": "liver_ct_lightm_unet_segmentation", "2D": "lung_cxr_lightm_unet_segmentation"}


def main() -> None:
    there = {dims: compared(_BUNDLES / bundle) for dims, bundle in _IN.items()}
    rows = [
        [
            Path(name).name,
            *(
                f"{parameters(_BUNDLES / bundle, name):,}" if name in there[dims] else "-"
                for dims, bundle in _IN.items()
            ),
        ]
        for name in sorted({name for names in there.values() for name in names})
    ]
    say(table(("network", *(f"parameters, {dims}" for dims in _IN)), rows))


def parameters(bundle: Path, name: str) -> int:
    """Of the network in one of a bundle's files."""
    parser = ConfigParser()
    parser.read_config([f"{bundle}/configs/{file}.json" for file in ("train", name)])
    network = parser.get_parsed_content("network_def")
    return sum(x.numel() for x in network.parameters())


if __name__ == "__main__":
    main()
