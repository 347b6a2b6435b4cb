"""DICOM as images: a series of a folder or zip file is a volume, one file of one frame a picture.

pydicom reads and decodes; highdicom puts slices and frames in order, checks that they make a
volume, and applies each one's own rescale. What they refuse gets a sentence that says which slice.
"""

from __future__ import annotations

import lzma
import math
import os
import struct
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, by_axis, first_line, how_to_install, listed
from .formats import DICOM_ENDINGS, format_of, is_archive

_MAX_BYTES = 8 << 30  # of a zip file's content; a CT of 4,000 slices has 2 GiB
_MAX_FILES = 50_000
_PROBED = 50  # files and folders of a folder that are looked at
_OFF_GRID = 0.1  # slices, from where even distances put it
_TILT = 0.1  # degrees
_TURNED = 1e-3  # of a direction cosine: what rounding to three digits makes
NO_UID = "0"  # in place of one that an anonymised file lacks
# What zipfile raises for archives that are damaged or of a kind that it does not know.
_DAMAGE = (
    *(OSError, NotImplementedError, RuntimeError, EOFError, UnicodeDecodeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
_HEADER = (
    *("SOPClassUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "ImageType"),
    *("Rows", "NumberOfFrames", "ImagePositionPatient", "PerFrameFunctionalGroupsSequence"),
)


_FIRST_VRS = (b"UL", b"OB", b"UI", b"CS", b"DA", b"TM")  # of what groups 0002 and 0008 begin with


class _Slice(NamedTuple):
    """A file and what its header says."""

    file: str
    open: Callable[[], Any]
    header: Any

    @property
    def series(self) -> str:
        return str(self.header.get("SeriesInstanceUID") or "none")

    @property
    def modality(self) -> str:
        return str(self.header.get("Modality") or "none")

    @property
    def frames(self) -> int:
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in (self.header.get("ImageType") or ())

    @property
    def is_placed(self) -> bool:
        return bool(
            self.header.get("ImagePositionPatient")
            or self.header.get("PerFrameFunctionalGroupsSequence")
        )


def is_dicom(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a DICOM file, or a folder or zip file that has one.

    Only a few files' first bytes are read: of a folder its first 50 files, and the first 50 of
    its folders' likewise, three levels deep.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _holds_dicom(path, levels=3)
        if is_archive(path):
            with zipfile.ZipFile(path) as archive:
                files = [entry for entry in archive.infolist() if _is_listed(entry)]
                return any(_is_dicom(partial(archive.open, file)) for file in files[:_PROBED])
        return path.is_file() and format_of(path) is None and _is_dicom(partial(path.open, "rb"))
    except _DAMAGE:
        return False


def read_dicom(
    path: str | os.PathLike[str],
    modality: str | Sequence[str] | None = None,
    series_uid: str | None = None,
) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """The values of one series and where they are.

    Localisers are left out, and what has no place in the patient beside series that have one
    (dose reports); so are files that are no DICOM. Nothing of a zip file is written to disk.

    Args:
        path: a file, or a folder (with those in it) or zip file of files.
        modality: those that are images here, such as "CT"; None takes any.
        series_uid: the SeriesInstanceUID to take where there are several.

    Returns:
        HU, or what each slice's rescale makes of its stored values, as integers if that has no
        fractions: (columns, rows, slices), and the affine (4, 4) to RAS, mm; of one file of one
        frame (columns, rows) and None. MONOCHROME1 is inverted, but not in CT and PET, whose values
        have a unit.

    Raises:
        InputError: highdicom or a decoder is missing; a file is damaged; several series, or none,
            are of the modality; slices are missing, doubled, of several sizes, spacings or
            orientations, or tilted against the axis they are stacked along (gantry tilt).
    """
    highdicom = _library(path)
    series = read_series(path, modality, series_uid)
    names, datasets = list(series), list(series.values())
    frames = int(datasets[0].get("NumberOfFrames") or 1)
    _check_alike(path, names, datasets)
    values: dict[str, Any] = {
        "dtype": np.int32 if all(map(_is_whole, datasets)) else np.float64,
        "apply_real_world_transform": False,
        "apply_presentation_lut": datasets[0].get("Modality") not in ("CT", "PT"),
    }
    try:
        if len(datasets) == 1 and frames == 1:
            image = highdicom.Image.from_dataset(datasets[0], copy=False)
            return image.get_frame(1, **values).T, None
        _check_places(path, names, datasets)
        # Its own checks are the looser ones, so that a sentence says what is wrong.
        values |= {"rtol": 3 * _OFF_GRID, "perpendicular_tol": 1e-5}
        if frames > 1:
            image = highdicom.Image.from_dataset(datasets[0], copy=False)
            volume = image.get_volume(**values)
        else:
            volume = highdicom.get_volume_from_series(datasets, orientation_tol=1e-5, **values)
    except InputError:
        raise
    except Exception as error:
        _check_decoded(names, datasets)
        raise InputError(
            f"{path} cannot be made an image ({first_line(error)}); needed are "
            "slices of one regular volume."
        ) from error
    # (slices, rows, columns), the slices ordered against the normal of columns and rows
    volume = volume.permute_spatial_axes([2, 1, 0]).flip_spatial(2)
    return volume.array, volume.get_affine("RAS")


def read_series(
    path: str | os.PathLike[str],
    modality: str | Sequence[str] | None = None,
    series_uid: str | None = None,
) -> dict[str, Any]:
    """The files of the series whose values `read_dicom` reads, by their names.

    What they lack of the UIDs that highdicom asks for is filled in: SeriesInstanceUID and
    FrameOfReferenceUID are `NO_UID` then.

    Args:
        path, modality, series_uid: as for `read_dicom`.

    Returns:
        pydicom's datasets with their pixels, which are not decoded.

    Raises:
        InputError: as `read_dicom`, but for what is wrong with the slices' places.
    """
    _library(path)
    with _files(Path(path)) as files:
        slices = _chosen(path, _headers(path, files), modality, series_uid)
        return {item.file: _dataset(item) for item in slices}


def frame_places(dataset: Any) -> tuple[list[Any], list[Any]]:
    """The positions of the frames of a file of several and their orientations."""
    positions, orientations = [], []
    for group in _groups(dataset):
        positions += [p.ImagePositionPatient for p in group.get("PlanePositionSequence") or ()]
        orientations += [
            o.ImageOrientationPatient for o in group.get("PlaneOrientationSequence") or ()
        ]
    return positions, orientations


def _library(path: Any) -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise InputError(
            f"Reading DICOM needs highdicom, which is not installed: {how_to_install('dicom')}."
        ) from error
    return highdicom


def _is_dicom(open_file: Callable[[], Any]) -> bool:
    """By DICM after 128 bytes or, of a file that lacks these, by its first element."""
    with open_file() as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    group, _, vr, length = struct.unpack("<HH2sH", start[:8].ljust(8, b"\0"))
    if group not in (0x0002, 0x0008):
        return False
    short = int.from_bytes(vr, "little") <= 64 and length == 0  # implicit, with a length of 4 bytes
    return vr in _FIRST_VRS or (group == 0x0008 and len(start) == 132 and short)


def _holds_dicom(folder: Path, levels: int) -> bool:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [entry for entry in entries if entry.is_file() and format_of(entry) is None]
    if any(_is_dicom(partial(file.open, "rb")) for file in files[:_PROBED]):
        return True
    folders = [entry for entry in entries if entry.is_dir()][:_PROBED]
    return levels > 1 and any(_holds_dicom(inner, levels - 1) for inner in folders)


def _is_listed(entry: zipfile.ZipInfo) -> bool:
    parts = entry.filename.split("/")
    return not (entry.is_dir() or "__MACOSX" in parts or parts[-1].startswith("."))


@contextmanager
def _files(path: Path) -> Iterator[dict[str, Callable[[], Any]]]:
    """What opens each file of a folder or zip file, or the one file, by their names."""
    if path.is_dir():
        found = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
        yield {str(file): partial(file.open, "rb") for file in found}
    elif not is_archive(path):
        yield {str(path): partial(path.open, "rb")}
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                entries = [entry for entry in archive.infolist() if _is_listed(entry)]
                _check_archive(path, entries)
                # No more of a member is read than its file_size.
                yield {
                    f"{path}/{entry.filename}": partial(archive.open, entry) for entry in entries
                }
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{path} cannot be unpacked ({first_line(error)}).") from error


def _check_archive(path: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    size = sum(entry.file_size for entry in entries)
    if size > _MAX_BYTES or len(entries) > _MAX_FILES:
        raise InputError(
            f"{path} would unpack to {size} bytes in {len(entries)} files; allowed are "
            f"{_MAX_BYTES} in {_MAX_FILES}."
        )


def _headers(path: Any, files: dict[str, Callable[[], Any]]) -> list[_Slice]:
    """The images among the files."""
    import pydicom

    slices = []
    for name, open_file in files.items():
        if not _is_dicom(open_file):
            if name.lower().endswith(DICOM_ENDINGS):
                raise InputError(f"{name} is no DICOM file; allowed are complete ones.")
            continue
        try:
            with open_file() as file:
                header = pydicom.dcmread(
                    file, stop_before_pixels=True, force=True, specific_tags=list(_HEADER)
                )
        except Exception as error:
            raise InputError(f"{name} cannot be read as DICOM ({first_line(error)}).") from error
        if header.get("Rows"):  # neither a list of files nor a report
            slices.append(_Slice(name, open_file, header))
    if not slices:
        raise InputError(f"{path} holds no DICOM image; needed is at least one.")
    return slices


def _chosen(
    path: Any,
    slices: list[_Slice],
    modality: str | Sequence[str] | None,
    series_uid: str | None,
) -> list[_Slice]:
    """The slices of one series."""
    all_series = _by_series(slices)
    if series_uid is not None:
        if series_uid not in all_series:
            raise InputError(
                f"{path} has no series of the series_uid {series_uid}; allowed are those of "
                f"{_described(all_series)}."
            )
        return all_series[series_uid]
    wanted = [modality] if isinstance(modality, str) else modality
    fitting = [item for item in slices if wanted is None or item.modality in wanted]
    if not fitting:
        raise InputError(
            f"{path} holds no series of the modality {' or '.join(wanted or ())}, but "
            f"{_described(all_series)}."
        )
    if all(item.is_localizer for item in fitting) and len(fitting) > 1:
        raise InputError(
            f"{path} holds localisers alone: {_described(_by_series(fitting))}; needed is a series "
            "of slices."
        )
    fitting = [item for item in fitting if not item.is_localizer] or fitting
    series = _by_series(fitting)
    placed = {uid: items for uid, items in series.items() if any(i.is_placed for i in items)}
    series = placed or series
    if len(series) > 1:
        raise InputError(
            f"{path} holds {len(series)} series: {_described(series)}; allowed is one, or the UID "
            "of one as series_uid."
        )
    return next(iter(series.values()))


def _by_series(slices: Sequence[_Slice]) -> dict[str, list[_Slice]]:
    series = defaultdict(list)
    for item in slices:
        series[item.series].append(item)
    return dict(sorted(series.items()))


def _described(series: dict[str, list[_Slice]]) -> str:
    return listed(
        f"{uid} ({items[0].modality}, {str(items[0].header.get('SeriesDescription') or '')!r}, "
        f"{sum(item.frames for item in items)} slices)"
        for uid, items in series.items()
    )


def _dataset(item: _Slice) -> Any:
    """A whole file, with the UIDs that anonymised ones lack and highdicom asks for.

    One without its own group does not say how it is encoded: then it is not compressed.
    """
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        with item.open() as file:
            dataset = pydicom.dcmread(file, force=True)
    except Exception as error:
        raise InputError(f"{item.file} cannot be read as DICOM ({first_line(error)}).") from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, _ = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    usual = {
        "SOPClassUID": CTImageStorage,
        "SeriesInstanceUID": NO_UID,
        "FrameOfReferenceUID": NO_UID,
    }
    for name, value in usual.items():
        if not dataset.get(name):
            setattr(dataset, name, value)
    return dataset


def _check_decoded(names: Sequence[str], datasets: Sequence[Any]) -> None:
    """Name the file whose pixels there are not, if it is that."""
    for name, dataset in zip(names, datasets, strict=True):
        try:
            _ = dataset.pixel_array
        except Exception as error:
            syntax, decoder = dataset.file_meta.TransferSyntaxUID, ""
            if not syntax.is_transfer_syntax:
                decoder = f" in a transfer syntax that pydicom knows, not {syntax}"
            elif syntax.is_compressed:
                decoder = f" and a decoder of {syntax.name}: {how_to_install('dicom')}"
            raise InputError(
                f"{name} cannot be decoded ({first_line(error)}); needed are complete files"
                f"{decoder}."
            ) from error


def _is_whole(dataset: Any) -> bool:
    """Whether the values are integers, of at most 16 bits and rescaled by integers."""
    if "PixelData" not in dataset or dataset.BitsAllocated > 16:
        return False
    groups = [dataset, *_groups(dataset)]
    groups += [inner for g in groups for inner in g.get("PixelValueTransformationSequence") or ()]
    factors = [g.get(n) for g in groups for n in ("RescaleSlope", "RescaleIntercept")]
    return all(float(factor or 0).is_integer() and abs(factor or 0) < 1 << 14 for factor in factors)


def _groups(dataset: Any) -> list[Any]:
    """The functional groups of an image of several frames: those of all, and those of each."""
    names = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    return [group for name in names for group in dataset.get(name) or ()]


def _check_alike(path: Any, names: Sequence[str], datasets: Sequence[Any]) -> None:
    for name, dataset in zip(names, datasets, strict=True):
        if dataset.get("SamplesPerPixel", 1) != 1 or "PALETTE" in dataset.PhotometricInterpretation:
            raise InputError(
                f"{name} is in colours ({dataset.PhotometricInterpretation}); allowed are greys."
            )
        if len(datasets) == 1:
            continue
        if dataset.get("NumberOfFrames", 1) > 1:
            raise InputError(
                f"{path} holds {len(datasets)} files of several frames in one series; allowed is "
                "one of them, by its own name."
            )
        for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            if not dataset.get(tag):
                raise InputError(f"{name} has no {tag}, which a volume's slices need.")
    alike: dict[str, Callable[[Any], Any]] = {
        "sizes": lambda dataset: by_axis((dataset.Columns, dataset.Rows)),
        "pixel spacings": lambda dataset: by_axis(dataset.get("PixelSpacing") or (), digits=12),
    }
    for what, value in alike.items():
        found = Counter(map(value, datasets))
        if len(found) > 1:
            rare = found.most_common()[-1][0]
            odd = next(n for n, d in zip(names, datasets, strict=True) if value(d) == rare)
            raise InputError(
                f"{path} holds slices of several {what}: {', '.join(found)}, such as {odd}; "
                "allowed is one."
            )


def _check_places(path: Any, names: Sequence[str], datasets: Sequence[Any]) -> None:
    """Whether slices, or one file's frames, are evenly stacked along their normal."""
    if len(datasets) == 1:
        names = [f"frame {n + 1}" for n in range(int(datasets[0].NumberOfFrames))]
        positions, orientations = frame_places(datasets[0])
    else:
        positions = [d.ImagePositionPatient for d in datasets]
        orientations = [d.ImageOrientationPatient for d in datasets]
    if len(positions) != len(names) or not orientations:
        raise InputError(
            f"{path} does not say where each of its {len(names)} frames is; needed are their "
            "position and orientation in the patient, as enhanced CT and MR have them."
        )
    turned = np.abs(np.array(orientations, np.float64) - np.array(orientations[0], np.float64))
    if turned.max() > _TURNED:
        raise InputError(
            f"{path} has slices of several orientations, such as {list(orientations[0])} and "
            f"{list(orientations[turned.max(1).argmax()])}; allowed is one."
        )
    across, down = np.array(orientations[0], np.float64).reshape(2, 3)
    normal = np.cross(across, down)
    points = np.array(positions, np.float64)
    heights = points @ normal
    order = np.argsort(heights, kind="stable")
    heights, points, names = heights[order], points[order], [names[n] for n in order]
    steps = np.diff(heights)
    if len(steps) == 0:
        return

    def pair(at: int) -> str:
        return f"{names[at]} and {names[at + 1]}"

    def place(at: int) -> str:
        return f"({', '.join(f'{x:g}' for x in points[at])}) mm"

    if steps.min() < 1e-2:
        at, doubled = int(steps.argmin()), int((steps < 1e-2).sum())
        raise InputError(
            f"{path} has {doubled} slices at the place of another: {pair(at)} are both at "
            f"{place(at)}; allowed is one slice at each place."
        )
    usual, at = float(np.median(steps)), int(steps.argmax())
    if steps[at] > 1.5 * usual:
        raise InputError(
            f"{path} lacks slices: {pair(at)}, at {place(at)} and {place(at + 1)}, are "
            f"{steps[at]:g} mm apart, others {usual:g} mm; allowed are even distances."
        )
    even = np.linspace(heights[0], heights[-1], len(heights))
    if np.abs(heights - even).max() > _OFF_GRID * steps.mean():
        at = int(np.abs(steps - usual).argmax())
        raise InputError(
            f"{path} has slices at uneven distances of {steps.min():g} to {steps.max():g} mm: "
            f"{pair(at)}, at {place(at)} and {place(at + 1)}, are {steps[at]:g} mm apart, others "
            f"{usual:g} mm; allowed are even distances."
        )
    aside = points - points[0] - np.outer(heights - heights[0], normal)
    tilt = math.degrees(math.atan2(np.linalg.norm(aside, axis=1).max(), heights[-1] - heights[0]))
    if tilt > _TILT:
        raise InputError(
            f"{path} has slices that are stacked {tilt:.1f} degrees off their normal (gantry "
            f"tilt); allowed are up to {_TILT:g} degrees. dcm2niix writes a NIfTI file without the "
            "tilt."
        )
