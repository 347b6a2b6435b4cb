"""Data sets: made and converted."""

from __future__ import annotations

from .output import say


def phantom(
    output: str, cases: int = 8, seed: int = 0, kind: str = "ct", size: int | None = None
) -> None:
    """Write a synthetic data set, to try things with.

    Output:
        output: the folder; a new or empty one, or with an earlier set, which is replaced.
    What is made:
        cases: images with labels; of CTs a fifth as many more are for tests.
        seed: another one gives other images.
        kind: ct for liver and tumours, mr for a hippocampus, both in 3D; cxr for lungs in 2D.
        size: voxels or pixels across, by default 112 or 288.
    """
    from ..data.phantom import write_phantom

    folder = write_phantom(output, cases=cases, seed=seed, kind=kind, size=size)  # type: ignore[arg-type]
    say(f"{cases} cases are in {folder}")


def ircadb(input: str, output: str) -> None:
    """Convert 3D-IRCADb-01 from DICOM to the layout that the bundles read (extra: dicom).

    To evaluate on all its cases: --dataset_dir OUTPUT --split "[0,0,1]"

    Input:
        input: the folder that has the patients' folders, or one of these.
    Output:
        output: the folder for the data set, a new or empty one.
    """
    from ..data import write_ircadb

    cases = write_ircadb(input, output)
    width = max(len(case.name) for case in cases)
    for case in cases:
        say(f"{case.name:{width}}  {case.slices} slices  {', '.join(case.structures)}")
    say(f"{len(cases)} cases are in {output}")
