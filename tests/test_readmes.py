"""The bundles' READMEs: one order of sections, a model card's, and figures of the networks."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import markdown
import pytest
from PIL import Image

from benchmarks.architecture import FIGURE, TEXT, as_text, of_bundle
from common.files import read_json
from common.zoo.contract import config
from common.zoo.push import model_card

from .conftest import REPOSITORY
from .test_bundles import BUNDLES
from .test_docs import Html, read

# What every README has, in this order; what else it has is between or below these.
SECTIONS = [
    "## Model details",
    "## Intended use",
    "### Out of scope",
    "## Data",
    "### Training data",
    "### Evaluation data",
    "## Commands",
    "## Deviations from the paper",
    "## Results",
    "### Metrics",
    "### Measured here and claimed",
    "## Limitations and risks",
    "## Licence",
    "## Citation",
]
COLUMNS = "| | measured here | the paper's claim |"

traced = cache(of_bundle)


@pytest.fixture(params=BUNDLES, ids=lambda path: path.name)
def readme(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path / "docs/README.md"


def headings(readme: Path) -> list[str]:
    """Of the first three levels; comments in commands are none."""
    return re.findall(r"^#{1,3} .+$", readme.read_text(), re.M)


def section(readme: Path, heading: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = heading.partition(" ")[0]
    text = readme.read_text().split(f"\n{heading}\n")[1]
    return re.split(rf"^#{{1,{len(level)}}} ", text, maxsplit=1, flags=re.M)[0]


def test_sections_in_order(readme: Path):
    found = headings(readme)
    assert [x for x in found if x in SECTIONS] == SECTIONS
    assert [x for x in found if x.startswith("## ")] == [x for x in SECTIONS if x[:3] == "## "]
    assert found[0].startswith("# ")
    assert found[1] == SECTIONS[0]
    for heading in SECTIONS:
        assert section(readme, heading).strip(), heading


def test_one_figure_before_all_sections(readme: Path):
    pictures = re.findall(r"^!\[(.*)\]\((.*)\)$", readme.read_text(), re.M)
    assert [path for _, path in pictures] == [FIGURE]
    alternative = pictures[0][0]
    assert len(alternative.split()) > 8, "who does not see it reads what it shows"
    assert readme.read_text().index(FIGURE) < readme.read_text().index("\n## ")
    assert (readme.parent / FIGURE).stat().st_size <= 60_000


def test_the_figure_is_of_the_network(readme: Path):
    """`python -W ignore -m benchmarks.architecture` draws it again."""
    with Image.open(readme.parent / FIGURE) as image:
        assert image.text[TEXT] == as_text(traced(readme.parents[1]))


def test_boxes_of_a_figure_have_a_place_each(readme: Path):
    places = [(stage.grid, stage.column) for stage in traced(readme.parents[1])]
    assert len(set(places)) == len(places)


def test_links_stay_within_the_bundle(readme: Path):
    """So they lead somewhere from an unpacked bundle, and from the Hub's card."""
    page = read(readme)
    for link in page.links + page.loads:
        path = urlsplit(link).path
        assert urlsplit(link).scheme or not path.startswith(".."), link
        assert urlsplit(link).scheme or (readme.parent / unquote(path)).exists(), link


def test_the_hubs_card_finds_its_files(readme: Path):
    folder = readme.parents[1]
    _, _, text = model_card(folder).partition("\n---\n")
    assert f"](docs/{FIGURE})" in text
    page = Html(markdown.markdown(text, extensions=["fenced_code", "tables", "sane_lists"]))
    for link in page.links + page.loads:
        path = urlsplit(link).path
        assert urlsplit(link).scheme or (folder / unquote(path)).exists(), link


def test_measured_and_claimed_stand_apart(readme: Path):
    """In a table of two columns, whose every row says something in one of them."""
    table = section(readme, "### Measured here and claimed").partition("\n\n")[0]
    header, _, *rows = table.splitlines()
    assert header == COLUMNS
    assert rows
    for row in rows:
        name, measured, claimed = (cell.strip() for cell in row.strip("|").split("|"))
        assert name, row
        assert {measured, claimed} - {"-", "", "not measured", "not given"}, row


def test_the_card_has_the_licences(readme: Path):
    meta = config(readme.parents[1], "metadata")
    text = " ".join(section(readme, "## Licence").split())
    assert "Apache-2.0" in text
    assert "(data_license.txt)" in text
    if "weights_license" in meta:
        assert meta["weights_license"].replace("CC-", "CC ").replace("-4.0", " 4.0") in text


def test_the_paper_is_cited(readme: Path):
    """The metadata's first reference, by its number."""
    reference = config(readme.parents[1], "metadata")["references"][0]
    number = re.search(r"arXiv:[\d.]+\d|doi:\S+\w", reference)
    text = " ".join(section(readme, "## Citation").split())
    assert (number[0] if number else reference.partition(" (")[0]) in text


class Claim(NamedTuple):
    """A number that a README says its paper claims, where a study has it from the paper."""

    bundle: str
    label: str  # of the row
    study: str
    row: str
    metrics: tuple[str, ...]
    digits: int


LITS, LUNGS = "lightm_unet/table_1", "lightm_unet/table_2"
CLAIMS = [
    *(
        Claim("liver_ct_lightm_unet", label, LITS, "LightM-UNet", metrics, 2)
        for label, metrics in (
            ("parameters, 1 -> 3 channels", ("parameters, M",)),
            ("liver, LiTS: Dice, IoU", ("liver dice, %", "liver iou, %")),
            ("tumours, LiTS: Dice, IoU", ("tumour dice, %", "tumour iou, %")),
            ("mean of both: Dice, IoU", ("mean dice, %", "mean iou, %")),
        )
    ),
    Claim("lung_cxr_lightm_unet", "parameters, 1 -> 2 channels", LUNGS, "LightM-UNet",
          ("parameters, M",), 2),
    Claim("lung_cxr_lightm_unet", "lungs, Montgomery and Shenzhen: Dice, IoU", LUNGS, "LightM-UNet",
          ("lung dice, %", "lung iou, %"), 2),
    *(
        Claim("liver_tumor_ct_mambaclinix", f"{label}: Dice, IoU", f"mambaclinix/table_3_{study}",
              "MambaClinix", (f"{kind} dice, %", f"{kind} iou, %"), 2)
        for label, study, kind in (
            ("tumours, LiverT", "livert", "tumour"),
            ("tumours, LungT", "lungt", "tumour"),
            ("organs, ABD", "abd", "mean"),
            ("regions, BraTS 2021", "brats", "mean"),
            ("vessels and bronchi, PCD", "pcd", "mean"),
        )
    ),
    *(
        Claim("liver_tumor_ct_codebook_mamba", f"{label}, LiTS: {metric}",
              "codebook_mamba_unet/table_4", "Model3",
              (f"{kind} {name}", f"{kind} {name} sd"), digits)
        for label, kind in (("liver", "liver"), ("tumours", "tumour"))
        for metric, name, digits in (("Dice", "dice", 4), ("HD95", "hd95", 4))
    ),
    *(
        Claim("liver_tumor_ct_elanres_msca", f"{label}, LiTS: Dice, ASD",
              "elanres_msca_unet/table_3_4", "ELANRes-MSCA-UNet",
              (f"{kind} dice", f"{kind} asd"), 3)
        for label, kind in (("liver", "liver"), ("tumours", "tumour"))
    ),
    Claim("liver_tumor_ct_lcmambanet", "tumours, LiTS: Dice, T", "lcmambanet/table_2", "LCMamba-T",
          ("tumour dice, %", "tumour dice sd, %"), 2),
    Claim("liver_tumor_ct_lcmambanet", "tumours, LiTS: Dice, S", "lcmambanet/table_2", "LCMamba-S",
          ("tumour dice, %", "tumour dice sd, %"), 2),
    Claim("liver_tumor_ct_lcmambanet", "liver, CirrMRI600+: Dice, T", "lcmambanet/table_1",
          "LCMamba-T", ("liver dice, %", "liver dice sd, %"), 2),
    Claim("liver_tumor_ct_lcmambanet", "liver, CirrMRI600+: Dice, S", "lcmambanet/table_1",
          "LCMamba-S", ("liver dice, %",), 2),
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda x: f"{x.bundle}: {x.label}")
def test_claims_are_the_studies(claim: Claim):
    """Numbers of the READMEs' tables and of studies/ are of the same papers: they are the same."""
    readme = REPOSITORY / f"bundles/{claim.bundle}_segmentation/docs/README.md"
    rows = section(readme, "### Measured here and claimed").splitlines()
    (cell,) = (row.split("|")[3] for row in rows if row.startswith(f"| {claim.label} |"))
    told = read_json(REPOSITORY / f"studies/{claim.study}.json")["paper"][claim.row]
    wanted = [f"{told[metric]:.{claim.digits}f}" for metric in claim.metrics]
    assert re.findall(r"\d+\.\d+", cell)[: len(wanted)] == wanted
