"""Label maps as DICOM segmentations that refer to the slices they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError, first_line
from ..files import replacing
from .dicom_codes import coded
from .dicom_source import OF_THE_STUDY, Maker, Plane, Segment, planes_of, series_number
from .geometry import spacing_of


def write_dicom_seg(
    path: str | Path,
    labels: NDArray[np.integer],
    affine: ArrayLike,
    series: Mapping[str, Any],
    segments: Sequence[Segment],
    maker: Maker,
) -> None:
    """Write a label map as a binary DICOM Segmentation, by highdicom.

    Each class is a segment, in their order, with its name and codes (`common.data.dicom_codes`);
    frames without a voxel are left out. Without any voxel all are there, and empty.

    Args:
        path: the file.
        labels: (columns, rows, slices), on the grid of the series.
        affine: of it, (4, 4), to RAS, mm.
        series: the slices, as `read_series` gives them.
        segments: one or more classes; others are background.
        maker: what made it.

    Raises:
        InputError: as `planes_of`, or highdicom refuses what the series says of itself.
        OSError: the file cannot be written.
    """
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    planes = planes_of(series, affine, labels.shape)
    planes_at = sorted(range(len(planes)), key=lambda k: planes[k].frame or k)
    frames = np.zeros((len(planes), labels.shape[1], labels.shape[0]), np.uint8)
    for frame, k in zip(frames, planes_at, strict=True):
        section = labels[:, :, k].T
        for number, segment in enumerate(segments, start=1):
            frame[section == segment.value] = number
    sources = _sources([planes[k] for k in planes_at])
    for source in sources:
        _fill(source, spacing_of(affine, 3)[2])
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=maker.bundle, family=codes.CID7162.ArtificialIntelligence, version=maker.version
    )
    descriptions = []
    for number, segment in enumerate(segments, start=1):
        found = coded(segment.name)
        description = SegmentDescription(
            segment_number=number,
            segment_label=segment.name[:64],
            segmented_property_category=found.category,
            segmented_property_type=found.kind,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*segment.rgb),
        )
        if found.side is not None:
            (kind,) = description.SegmentedPropertyTypeCodeSequence
            side = highdicom.sr.CodedConcept.from_code(found.side)
            kind.SegmentedPropertyTypeModifierCodeSequence = [side]
        descriptions.append(description)
    try:
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type="BINARY",
            segment_descriptions=descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=series_number(sources[0]),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="MONAI Mamba bundles",
            manufacturer_model_name=maker.bundle[:64],
            software_versions=maker.version,
            device_serial_number=maker.weights[:16],
            series_description=f"Segmentation by {maker.bundle}"[:64],
            content_label="SEGMENTATION",
            specific_character_set="ISO_IR 192",
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"No DICOM segmentation of {next(iter(series))} and its series can be made "
            f"({first_line(error)}); needed are complete headers of an image."
        ) from error
    with replacing(path) as partial:
        segmentation.save_as(partial, enforce_file_format=True)


def _sources(planes: Sequence[Plane]) -> list[Any]:
    """The files of slices; of a file of several frames that one."""
    if planes[0].frame is not None:
        return [planes[0].instance]
    return [plane.instance for plane in planes]


def _fill(source: Any, thickness: float) -> None:
    """Give a file, in memory, what highdicom takes for granted and anonymised ones may lack."""
    for tag in OF_THE_STUDY:
        if tag not in source:
            setattr(source, tag, "")
    if "PerFrameFunctionalGroupsSequence" not in source and not source.get("SliceThickness"):
        source.SliceThickness = f"{thickness:.6g}"
