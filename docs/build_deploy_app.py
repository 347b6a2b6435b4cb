"""Build a MONAI Deploy application from a bundle of CT or MR: DICOM series in, DICOM SEG out.

    python docs/build_deploy_app.py BUNDLE --checkpoint models/model.pt --output APP [overrides]

The folder has all that the application needs but the packages in its requirements.txt: the network
as TorchScript with the bundle's metadata and inference config in it, and a copy of `common`, whose
transforms that config names. The config has the checkpoint's settings in it, but for what is given
here. docs/monai_deploy.md has the commands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import common
from common.checkpoints import load_settings
from common.errors import InputError

# What a segment is, in SNOMED CT, by the name of its class: category, type.
NEOPLASM = (("49755003", "Morphologically Altered Structure"), ("108369006", "Neoplasm"))
STRUCTURE = ("123037004", "Anatomical Structure")
KIDNEY, ADRENAL = ("64033007", "Kidney"), ("23451007", "Adrenal gland")  # labels tell the side
CODES = {
    "liver": (STRUCTURE, ("10200004", "Liver")),
    "spleen": (STRUCTURE, ("78961009", "Spleen")),
    "pancreas": (STRUCTURE, ("15776009", "Pancreas")),
    "aorta": (STRUCTURE, ("15825003", "Aorta")),
    "inferior vena cava": (STRUCTURE, ("64131007", "Inferior vena cava")),
    "gallbladder": (STRUCTURE, ("28231008", "Gallbladder")),
    "stomach": (STRUCTURE, ("69695003", "Stomach")),
    "duodenum": (STRUCTURE, ("38848004", "Duodenum")),
    **dict.fromkeys(("oesophagus", "esophagus"), (STRUCTURE, ("32849002", "Esophagus"))),
    **dict.fromkeys(("anterior", "posterior"), (STRUCTURE, ("5366008", "Hippocampus"))),
    **{f"{side} kidney": (STRUCTURE, KIDNEY) for side in ("left", "right")},
    **{f"{side} adrenal gland": (STRUCTURE, ADRENAL) for side in ("left", "right")},
    **dict.fromkeys(("tumour", "tumor", "cancer"), NEOPLASM),  # the last is the Decathlon's
    "portal and splenic vein": (STRUCTURE, ("29092000", "Vein")),
}
REQUIREMENTS = """\
torch=={pytorch_version}
monai=={monai_version}
numpy=={numpy_version}
monai-deploy-app-sdk>=4
pydicom>=3
highdicom>=0.26
SimpleITK>=2.4
pylibjpeg>=2
pylibjpeg-openjpeg>=2
"""
APP = Template('''\
"""$name: a DICOM series in, a DICOM segmentation out."""

from pathlib import Path

from pydicom.sr.coding import Code

from monai.deploy.conditions import CountCondition
from monai.deploy.core import AppContext, Application
from monai.deploy.core.domain import Image
from monai.deploy.core.io_type import IOType
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator
from monai.deploy.operators.dicom_seg_writer_operator import (
    DICOMSegmentationWriterOperator,
    SegmentDescription,
)
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator
from monai.deploy.operators.dicom_series_to_volume_operator import DICOMSeriesToVolumeOperator
from monai.deploy.operators.monai_bundle_inference_operator import (
    IOMapping,
    MonaiBundleInferenceOperator,
)

NAME, VERSION = $name_literal, $version_literal
RULES = """$rules"""
SEGMENTS = $segments


class Inference(MonaiBundleInferenceOperator):
    """As the SDK's, but the inferer gets torch's network itself, with its parts."""

    def predict(self, data, *args, **kwargs):
        network = getattr(self._model_network, "predictor", self._model_network)
        return self._inferer(data, network, *args, **kwargs)


class App(Application):
    def compose(self):
        context = Application.init_app_context(self.argv)
        model = Path(context.model_path)
        bundle = model if model.is_file() else model / "model.ts"
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(context.input_path), name="loader"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=RULES, name="selector")
        volume = DICOMSeriesToVolumeOperator(self, name="volume")
        inference = Inference(
            self,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            app_context=context,
            bundle_path=bundle,
            name="inference",
        )
        segments = [
            SegmentDescription(
                segment_label=label,
                segmented_property_category=Code(category[0], "SCT", category[1]),
                segmented_property_type=Code(kind[0], "SCT", kind[1]),
                algorithm_name=NAME[:64],
                algorithm_version=VERSION,
            )
            for label, (category, kind) in SEGMENTS.items()
        ]
        writer = DICOMSegmentationWriterOperator(
            self,
            segment_descriptions=segments,
            output_folder=Path(context.output_path),
            name="writer",
        )
        series = "study_selected_series_list"
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, volume, {(series, series)})
        self.add_flow(volume, inference, {("image", "image")})
        self.add_flow(selector, writer, {(series, series)})
        self.add_flow(inference, writer, {("pred", "seg_image")})


if __name__ == "__main__":
    App().run()
''')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--checkpoint", type=Path, help="default: models/model.pt of the bundle")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    options, overrides = parser.parse_known_args()
    checkpoint = options.checkpoint or options.bundle / "models/model.pt"
    if options.output.exists():
        parser.error(f"--output {options.output} is there already; allowed is a new folder")
    try:
        metadata = json.loads((options.bundle / "configs/metadata.json").read_text())
    except OSError as error:
        parser.error(f"{options.bundle} is no bundle ({error})")
    data = metadata["network_data_format"]
    if metadata["modality"] not in ("CT", "MR"):
        parser.error(f"{options.bundle} is for {metadata['modality']}; allowed are CT and MR")
    channels = data["inputs"]["image"]["num_channels"]
    if channels != 1:
        parser.error(
            f"{options.bundle} takes images of {channels} channels; allowed is 1, a series of DICOM"
        )
    try:
        settings = load_settings(checkpoint)
    except InputError as error:
        parser.error(str(error))
    labels = settings.get("label_names") or list(data["outputs"]["pred"]["channel_def"].values())
    labels = labels[1 : settings.get("num_classes")]
    unknown = [name for name in labels if name not in CODES]
    if unknown:
        parser.error(f"there is no SNOMED CT code for {', '.join(unknown)}; add it to CODES")

    partial = options.output.with_name(f".{options.output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "model").mkdir(parents=True)
    command = [sys.executable, "-W", "ignore", "-m", "common", "export", "--format", "torchscript"]
    command += ["--checkpoint", checkpoint, "--output", partial / "model/model.ts"]
    command += ["--config_file", options.bundle / "configs/inference.json", *overrides]
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        shutil.rmtree(partial)
        sys.exit(done.returncode)
    ours = Path(common.__file__).parent
    shutil.copytree(ours, partial / "common", ignore=shutil.ignore_patterns("__pycache__"))
    rules = {"selections": [{"name": "series", "conditions": {"Modality": metadata["modality"]}}]}
    (partial / "app.py").write_text(
        APP.substitute(
            name=metadata["name"],
            name_literal=repr(metadata["name"]),
            version_literal=repr(metadata["version"]),
            rules=json.dumps(rules),
            segments=repr({name: CODES[name] for name in labels}),
        )
    )
    packages = metadata["required_packages_version"].items()
    pins = "".join(f"{name}=={version}\n" for name, version in packages)
    (partial / "requirements.txt").write_text(REQUIREMENTS.format(**metadata) + pins)
    partial.rename(options.output)
    sys.stdout.write(f"application: {options.output}\n")


if __name__ == "__main__":
    main()
