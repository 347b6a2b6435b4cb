"""Copy a DICOM series that lost its UIDs to anonymisation, and give it new ones.

    python docs/fill_uids.py FOLDER NEW_FOLDER

MONAI Deploy reads no series without. Needs pydicom.
"""

import sys
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import generate_uid

source, target = map(Path, sys.argv[1:])
target.mkdir()
study, series = generate_uid(), generate_uid()
for file in sorted(source.glob("*.dcm")):
    instance = dcmread(file)
    instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
    instance.SOPClassUID = instance.file_meta.MediaStorageSOPClassUID
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID
    instance.PatientID, instance.StudyID, instance.SeriesNumber = "anonymous", "1", 1
    instance.save_as(target / file.name)
