"""What a codebook's prototypes stand for: where they are in images, and how they lie to each other.

Teng et al., figure 6 (Codebook Mamba U-Net).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from monai.transforms import Invertd
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import InputError, how_to_install
from ..files import replacing, writing

_logger = logging.getLogger(__name__)
_NEIGHBOURS = 15  # of UMAP; with fewer prototypes it has nothing to unfold


def write_code_maps(
    network: Any,
    preprocessing: Callable,
    patch_size: Sequence[int],
    images: Iterable[tuple[str | Sequence[str], Path]],
) -> tuple[list[Path], Tensor]:
    """Write each image's codes as a NIfTI volume, on the image's own grid.

    The image is cut into windows side by side; a voxel has the code of its site in its window's
    bottleneck.

    Args:
        network: a network with a codebook, such as `common.networks.CodebookMambaUNet`.
        preprocessing: invertible MONAI transforms of {"image": file or files}, those of inference.
        patch_size: voxels of a window after preprocessing.
        images: each image, a file or one per channel, with its volume.

    Returns:
        The volumes' paths, and the codes of all windows' sites, (sites,).

    Raises:
        InputError: an image cannot be read, or a volume not be written.
    """
    network.eval()
    device = next(network.parameters()).device
    invert = Invertd("codes", preprocessing, orig_keys="image", nearest_interp=True)
    paths, sites = [], []
    for image, path in tqdm(list(images), desc="images", disable=None):
        item = preprocessing({"image": image})
        codes, found = _code_map(network, item["image"].as_tensor(), patch_size, device)
        codes = invert(item | {"codes": MetaTensor(codes)})["codes"]
        sites.append(found)
        values = codes[0].numpy().astype(np.int16)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                nib.save(nib.Nifti1Image(values, codes.affine.numpy()), partial)
        except OSError as error:
            raise InputError(f"The codes {path} cannot be written ({error.strerror}).") from error
        paths.append(path)
    return paths, torch.cat(sites)


def draw_prototypes(
    prototypes: NDArray[np.float32], histogram: NDArray[np.int64], output: str | Path
) -> Path:
    """Write the figure of `prototypes_figure` as a PNG.

    Args:
        prototypes, histogram: as there.
        output: the PNG to write.

    Raises:
        InputError: the PNG cannot be written.
    """
    figure = prototypes_figure(prototypes, histogram)
    path = Path(output)
    with writing("picture", path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return path


def prototypes_figure(prototypes: NDArray[np.float32], histogram: NDArray[np.int64]) -> Any:
    """Draw prototypes in a plane, and the share of sites that each serves, in matplotlib's figure.

    The plane is UMAP's where umap-learn is installed and there are more prototypes than its
    neighbours; else that of the two principal components. The log says once that it is missing.

    Args:
        prototypes: (prototypes, channels).
        histogram: sites per prototype, (prototypes,).
    """
    from matplotlib.figure import Figure

    plane, method = _plane(prototypes)
    share = 100 * histogram / histogram.sum()
    figure = Figure(figsize=(14, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    used = histogram > 0
    left.scatter(*plane[~used].T, facecolors="none", edgecolors="tab:gray", label="no site")
    points = left.scatter(*plane[used].T, c=share[used], cmap="viridis", label="used")
    for index, (x, y) in enumerate(plane):
        left.annotate(str(index), (x, y), (3, 3), textcoords="offset points", fontsize=7)
    figure.colorbar(points, ax=left, label="sites, %")
    left.legend()
    left.set(title=f"{len(prototypes)} prototypes", xlabel=f"{method} 1", ylabel=f"{method} 2")
    right.bar(np.arange(len(share)), share)
    right.set(title=f"{int((~used).sum())} serve no site", xlabel="code", ylabel="sites, %")
    return figure


@torch.no_grad()
def _code_map(
    network: Any, image: Tensor, patch_size: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The code of each voxel of an image (c, ...), as floats (1, ...), and of each site."""
    size = image.shape[1:]
    short = [max(wanted - n, 0) for n, wanted in zip(size, patch_size, strict=True)]
    image = F.pad(image, [pad for n in reversed(short) for pad in (0, n)])
    codes = torch.empty(1, *image.shape[1:])
    sites = []
    for window in dense_patch_slices(image.shape[1:], patch_size, patch_size):
        part = (slice(None), *window)
        found = network.codes(image[part][None].to(device)).cpu()
        codes[part] = F.interpolate(found[None].float(), size=tuple(patch_size))[0]
        sites.append(found.flatten())
    inside = (slice(None), *map(slice, size))
    return codes[inside], torch.cat(sites)


def _plane(prototypes: NDArray[np.float32]) -> tuple[NDArray[np.float32], str]:
    """Prototypes in two dimensions, (prototypes, 2), and the method's name."""
    if len(prototypes) > _NEIGHBOURS:
        if find_spec("umap") is not None:
            from umap import UMAP

            umap = UMAP(n_neighbors=_NEIGHBOURS, random_state=0, n_jobs=1)
            return umap.fit_transform(prototypes), "UMAP"
        _say_without_umap()
    centred = prototypes - prototypes.mean(0)
    components = np.linalg.eigh(centred.T @ centred).eigenvectors[:, :-3:-1]  # largest first
    return centred @ components, "PCA"


@cache
def _say_without_umap() -> None:
    _logger.warning(
        "umap-learn is not installed: prototypes are drawn by their principal components; UMAP "
        "needs %s.",
        how_to_install("umap"),
    )
