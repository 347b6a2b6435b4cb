"""Published checkpoints, renamed for a strict load into the networks of this package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ..errors import InputError
from .load import StateDict, unwrapped, without_wrappers


def convert_checkpoint(state_dict: Mapping[str, object], network: str) -> StateDict:
    """State dict for one of our networks from a checkpoint of its paper's released code.

    Args:
        state_dict: parameter names to tensors; or a checkpoint that holds them under a key as for
            `load_state_dict`, such as nnU-Net's ``network_weights``. Prefixes of
            DistributedDataParallel and torch.compile are removed.
        network: "lightm_unet"; "mambaclinix"; "segmamba"; "swin_umamba", of both decoders;
            "umamba", of either release; "vm_unet"; "rma_mamba" for LCMambaNet, whose attention its
            code released; "vmamba" for an ImageNet classifier into VMambaEncoder: the classifier
            lacks the encoder's output norms, the encoder its head; or "vmamba_v1" for one of
            VMamba's first version into `common.blocks.VSSEncoder`, without its head.

    Raises:
        InputError: the network is unknown, or a parameter is none that its released code has.
    """
    if network not in _CONVERTERS:
        raise InputError(
            f"network is {network!r}; allowed are {', '.join(sorted(_CONVERTERS))}, and nnunet in "
            "python -m common convert."
        )
    return _CONVERTERS[network](without_wrappers(unwrapped(state_dict)))


# Parameter names of a release, as patterns from their start, and ours.
_Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def _renamed(state_dict: Mapping[str, Tensor], rules: _Rules, release: str) -> StateDict:
    renamed = {}
    for name, x in state_dict.items():
        for pattern, replacement in rules:
            new, found = re.subn("^" + pattern, replacement, name)
            if found:
                renamed[new] = x
                break
        else:
            raise InputError(
                f"The checkpoint has a parameter {name!r}, which {release}'s released code has "
                "not; allowed are checkpoints of that code."
            )
    return renamed


_LIGHTM_UNET: _Rules = [
    (r"convInit\.0\.conv\.", "stem.depthwise."),
    (r"convInit\.1\.conv\.", "stem.pointwise."),
    (r"down_layers\.(\d+)\.0\.0\.", r"encoder.\1.down.0."),
    (r"down_layers\.(\d+)\.(\d+)\.norm", lambda m: f"encoder.{m[1]}.blocks.{int(m[2]) - 1}.norm"),
    (
        r"down_layers\.(\d+)\.(\d+)\.conv(\d)\.",
        lambda m: f"encoder.{m[1]}.blocks.{int(m[2]) - 1}.layer{m[3]}.",
    ),
    (r"up_samples\.(\d+)\.0\.conv\.", r"decoder.\1.reduce."),
    (r"up_layers\.(\d+)\.(\d+)\.conv\.0\.conv\.", r"decoder.\1.blocks.\2.conv.depthwise."),
    (r"up_layers\.(\d+)\.(\d+)\.conv\.1\.conv\.", r"decoder.\1.blocks.\2.conv.pointwise."),
    (r"up_layers\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
    (r"conv_final\.0\.", "head.norm."),
    (r"conv_final\.2\.0\.conv\.", "head.conv.depthwise."),
    (r"conv_final\.2\.1\.conv\.", "head.conv.pointwise."),
]


def _lightm_unet(state_dict: Mapping[str, Tensor]) -> StateDict:
    renamed = _renamed(state_dict, _LIGHTM_UNET, "LightM-UNet")
    return {name.replace(".mamba.", ".mixer."): x for name, x in renamed.items()}


_MAMBACLINIX: _Rules = [
    (r"encoder\.stem\.convs\.0\.", "stem."),
    (r"encoder\.stages\.(\d+)\.blocks\.0\.skip\.[01]\.", r"encoder.\1.block.skip.1."),
    (r"encoder\.stages\.(\d+)\.blocks\.0\.", r"encoder.\1.block."),
    (r"encoder\.encoder_layers\.(\d+)\.gamma1$", r"encoder.\1.layer.scale"),
    (r"encoder\.encoder_layers\.(\d+)\.hgConvs\.dwconv\.", r"encoder.\1.layer.gated.depthwise."),
    (r"encoder\.encoder_layers\.(\d+)\.hgConvs\.reconv\.", r"encoder.\1.layer.gated.widen."),
    (r"encoder\.encoder_layers\.(\d+)\.hgConvs\.", r"encoder.\1.layer.gated."),
    (r"encoder\.encoder_layers\.(\d+)\.lynorm(\d)\.", r"encoder.\1.layer.norm\2."),
    (r"encoder\.encoder_layers\.(\d+)\.transconv\.conv\.", r"encoder.\1.layer.reduce."),
    (r"encoder\.encoder_layers\.(\d+)\.conv(\d)\.conv\.", r"encoder.\1.layer.conv\2."),
    (r"encoder\.encoder_layers\.(\d+)\.", r"encoder.\1.layer."),
    (r"decoder\.Init_Residual\.", "bottleneck."),
    (r"decoder\.residual_blocks\.(\d+)\.", r"decoder.\1.skip."),
    (r"decoder\.upsample_layers\.(\d+)\.conv\.", r"decoder.\1.reduce."),
    (r"decoder\.stages\.(\d+)\.conv3\.", r"decoder.\1.fuse.skip."),
    (r"decoder\.stages\.(\d+)\.(conv|norm)(\d)\.", r"decoder.\1.fuse.conv\3.\2."),
    (r"decoder\.seg_layers\.(\d+)\.", r"heads.\1."),
]


def _once(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Without the second names of what releases inside nnU-Net register twice."""
    return {
        name: x
        for name, x in state_dict.items()
        if ".all_modules." not in name and not name.startswith("decoder.encoder.")
    }


def _mambaclinix(state_dict: Mapping[str, Tensor]) -> StateDict:
    once = _once(state_dict)
    gated = [int(found[1]) for name in once if (found := re.match(r".*\.(\d+)\.gamma1$", name))]
    # One norm for the whole encoder, used before the last HGCN: there it stands in ours.
    norm = (r"encoder\.LayerNorm\.", f"encoder.{max(gated, default=0)}.norm.")
    renamed = _renamed(once, [norm, *_MAMBACLINIX], "MambaClinix")
    leaves = {"gamma": "weight", "beta": "bias"}
    return {re.sub(r"(gamma|beta)$", lambda m: leaves[m[1]], k): x for k, x in renamed.items()}


# Of both releases; the first alone says "blocks" and "convs".
_UMAMBA: _Rules = [
    (r"encoder\.stem\.(?:convs\.)?(\d+)\.(?=(conv|norm))", r"stem.\1."),
    (
        r"(encoder|decoder)\.stages\.(\d+)\.(?:blocks\.)?(\d+)\.(?=(conv|norm|skip\.)\d\.)",
        r"\1.\2.blocks.\3.",
    ),
    (r"encoder\.mamba_layers\.(\d+)\.norm\.", r"encoder.\1.layer.norm."),
    (r"encoder\.mamba_layers\.(\d+)\.mamba\.", r"encoder.\1.layer.mixer."),
    (r"decoder\.(?:transpconvs|upsample_layers)\.(\d+)\.(?:conv\.)?", r"decoder.\1.up.conv."),
    (r"decoder\.seg_layers\.(\d+)\.", r"heads.\1."),
]


def _umamba(state_dict: Mapping[str, Tensor]) -> StateDict:
    once = _once(state_dict)
    counted = (re.match(r"encoder\.stages\.(\d+)\.", name) for name in once)
    deepest = max((int(found[1]) for found in counted if found), default=0)
    bottleneck = f"encoder.{deepest}.layer."
    rules: _Rules = [
        (r"(mamba_layer\.norm|ln)\.", f"{bottleneck}norm."),
        (r"(mamba_layer\.)?mamba\.", f"{bottleneck}mixer."),
        *_UMAMBA,
    ]
    converted = {}
    for name, x in _renamed(once, rules, "U-Mamba").items():
        # Release 2 has the layers of a stage's first block beside each other; release 1 counts the
        # layers of a residual that there are.
        name = re.sub(r"\.(conv|norm)([12])\.(weight|bias)$", r".conv\2.\1.\3", name)
        name = name.replace(".conv3.", ".skip.").replace(".skip.0.", ".skip.1.")
        converted[name] = x
    return converted


_VMAMBA: _Rules = [
    (r"patch_embed\.0\.", "patch_embedding.conv1."),
    (r"patch_embed\.2\.", "patch_embedding.norm1."),
    (r"patch_embed\.5\.", "patch_embedding.conv2."),
    (r"patch_embed\.7\.", "patch_embedding.norm2."),
    # The release counts a downsampling to the stage before it.
    (r"layers\.(\d+)\.downsample\.1\.", lambda m: f"stages.{int(m[1]) + 1}.down.0."),
    (r"layers\.(\d+)\.downsample\.3\.", lambda m: f"stages.{int(m[1]) + 1}.down.1."),
    (r"layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"outnorm(\d+)\.", r"norms.\1."),
]


# The release counts the decoder from the finest map, where its attention comes last.
_RMA_MAMBA: _Rules = [
    (r"st_block(\d)\.1\.", lambda m: f"laterals.{int(m[1]) - 1}.blocks.0."),
    (r"translayer(\d)_st\.conv\.", lambda m: f"laterals.{int(m[1]) - 1}.conv.0."),
    (r"translayer(\d)_st\.bn\.", lambda m: f"laterals.{int(m[1]) - 1}.conv.1."),
    (r"out_conv1\.", "coarse_head."),
    (r"attention(\d)\.ra_conv3\.", lambda m: f"refinements.{3 - int(m[1])}.head."),
    (
        r"attention(\d)\.ra_conv(\d)\.conv\.",
        lambda m: f"refinements.{3 - int(m[1])}.conv{m[2]}.0.",
    ),
    (r"attention(\d)\.ra_conv(\d)\.bn\.", lambda m: f"refinements.{3 - int(m[1])}.conv{m[2]}.1."),
    (
        r"attention(\d)\.st_block(\d)\.1\.",
        lambda m: f"refinements.{3 - int(m[1])}.block{m[2]}.",
    ),
]


_VSS_BLOCK = {
    ".norm.": ".norm1.",
    ".op.": ".mixer.",
    ".mlp.fc1.": ".mlp.0.",
    ".mlp.fc2.": ".mlp.2.",
}


def _rename_blocks(state_dict: StateDict) -> StateDict:
    renamed = {}
    for name, x in state_dict.items():
        if ".block" in name:
            for old, new in _VSS_BLOCK.items():
                name = name.replace(old, new)
        renamed[name] = x
    return renamed


def _vmamba(state_dict: Mapping[str, Tensor]) -> StateDict:
    encoder = {name: x for name, x in state_dict.items() if not name.startswith("classifier.")}
    return _rename_blocks(_renamed(encoder, _VMAMBA, "VMamba"))


def _rma_mamba(state_dict: Mapping[str, Tensor]) -> StateDict:
    prefix = "encoder."
    encoder = {k.removeprefix(prefix): x for k, x in state_dict.items() if k.startswith(prefix)}
    decoder = {k: x for k, x in state_dict.items() if not k.startswith(prefix)}
    return {
        **{prefix + name: x for name, x in _vmamba(encoder).items()},
        **_rename_blocks(_renamed(decoder, _RMA_MAMBA, "RMA-Mamba")),
    }


def _vss_encoder(prefix: str, merges: str) -> _Rules:
    """Of VMamba's first version; `merges` is what its patch mergings stand under."""
    return [
        (rf"{prefix}patch_embed\.proj\.", "encoder.downs.0.conv."),
        (rf"{prefix}patch_embed\.norm\.", "encoder.downs.0.norm."),
        (
            rf"{prefix}{merges}\.reduction\.",
            lambda m: f"encoder.downs.{int(m[1]) + 1}.reduce.",
        ),
        (rf"{prefix}{merges}\.norm\.", lambda m: f"encoder.downs.{int(m[1]) + 1}.norm."),
        (rf"{prefix}layers\.(\d+)\.blocks\.", r"encoder.stages.\1."),
    ]


def _rename_gated_blocks(state_dict: StateDict) -> StateDict:
    return {
        name.replace(".ln_1.", ".norm.").replace(".self_attention.", ".mixer."): x
        for name, x in state_dict.items()
    }


def _vmamba_v1(state_dict: Mapping[str, Tensor]) -> StateDict:
    encoder = {k: x for k, x in state_dict.items() if not k.startswith(("norm.", "head."))}
    rules = _vss_encoder("", r"layers\.(\d+)\.downsample")
    renamed = _rename_gated_blocks(_renamed(encoder, rules, "VMamba"))
    return {name.removeprefix("encoder."): x for name, x in renamed.items()}


_VM_UNET: _Rules = [
    *_vss_encoder(r"vmunet\.", r"layers\.(\d+)\.downsample"),
    (r"vmunet\.layers_up\.(\d+)\.blocks\.", r"decoder.\1.blocks."),
    (r"vmunet\.layers_up\.(\d+)\.upsample\.", r"decoder.\1.up."),
    (r"vmunet\.final_up\.", "final_up."),
    (r"vmunet\.final_conv\.", "head."),
]
# What the package thop, which the release counts with before it trains, leaves in modules.
_COUNTED = ("total_ops", "total_params")


def _vm_unet(state_dict: Mapping[str, Tensor]) -> StateDict:
    weights = {name: x for name, x in state_dict.items() if name.rpartition(".")[2] not in _COUNTED}
    return _rename_gated_blocks(_renamed(weights, _VM_UNET, "VM-UNet"))


def _convolution(m: re.Match[str]) -> str:
    """Of a residual block: the third is its skip's."""
    return "skip.0" if m[2] == "3" else f"conv{m[2]}"


def _residual_decoder(levels: int) -> _Rules:
    """Of MONAI's UNETR blocks, which the releases count from the finest, from 1."""
    return [
        (
            r"encoder(\d)\.layer\.conv(\d)\.conv\.",
            lambda m: f"decoder.levels.{levels - int(m[1])}.skip.{_convolution(m)}.",
        ),
        (
            r"decoder(\d)\.conv_block\.conv(\d)\.conv\.",
            lambda m: f"decoder.levels.{levels + 1 - int(m[1])}.fuse.{_convolution(m)}.",
        ),
        (
            r"decoder(\d)\.transp_conv\.conv\.",
            lambda m: f"decoder.levels.{levels + 1 - int(m[1])}.up.",
        ),
        (r"decoder(1)\.layer\.conv(\d)\.conv\.", lambda m: f"decoder.final.{_convolution(m)}."),
    ]


_SWIN_UMAMBA: _Rules = [
    *_vss_encoder(r"vssm_encoder\.", r"downsamples\.(\d+)"),
    (r"stem\.", "stem."),
    *_residual_decoder(levels=5),
    (r"out_layers\.(\d)\.conv\.conv\.", r"heads.\1."),
    (r"decoder\.stages\.(\d+)\.blocks\.", r"decoder.levels.\1.blocks."),
    (r"decoder\.concat_back_dim\.(\d+)\.", r"decoder.levels.\1.project."),
]


def _swin_umamba(state_dict: Mapping[str, Tensor]) -> StateDict:
    # The released decoder of Mamba counts from the deepest, its last step and its heads too.
    expand = r"decoder\.expand_layers\.(\d+)\."
    last = max(
        (int(found[1]) for name in state_dict if (found := re.match(expand, name))), default=0
    )
    rules: _Rules = [
        (rf"decoder\.expand_layers\.{last}\.", "decoder.final."),
        (expand, r"decoder.levels.\1.up."),
        (r"decoder\.seg_layers\.(\d+)\.", lambda m: f"heads.{last - int(m[1])}."),
    ]
    return _rename_gated_blocks(_renamed(state_dict, [*rules, *_SWIN_UMAMBA], "Swin-UMamba"))


_GSC = {"": "wide1", "2": "wide2", "3": "narrow", "4": "fuse"}

_SEGMAMBA: _Rules = [
    (r"vit\.downsample_layers\.(\d)\.", r"encoder.\1.down."),
    (r"vit\.gscs\.(\d)\.proj(\d?)\.", lambda m: f"encoder.{m[1]}.spatial.{_GSC[m[2]]}."),
    (r"vit\.stages\.(\d)\.", r"encoder.\1.blocks."),
    (r"vit\.mlps\.(\d)\.fc1\.", r"encoder.\1.skip.1."),
    (r"vit\.mlps\.(\d)\.fc2\.", r"encoder.\1.skip.3."),
    (r"encoder(5)\.layer\.conv(\d)\.conv\.", lambda m: f"bottleneck.{_convolution(m)}."),
    *_residual_decoder(levels=4),
    (r"out\.conv\.conv\.", "head."),
]
# A weight of Mamba's second and third order, A_b_log or conv1d_s.
_OTHER_ORDER = re.compile(r"\.mamba\.(A|D|conv1d|x_proj|dt_proj)_([bs])(?=$|\.|_log$)")


def _segmamba(state_dict: Mapping[str, Tensor]) -> StateDict:
    orders = {"b": "reversed", "s": "sliced"}
    return {
        _OTHER_ORDER.sub(lambda m: f".mamba.others.{orders[m[2]]}.{m[1]}", name): x
        for name, x in _renamed(state_dict, _SEGMAMBA, "SegMamba").items()
    }


_CONVERTERS: dict[str, Callable[[Mapping[str, Tensor]], StateDict]] = {
    "lightm_unet": _lightm_unet,
    "mambaclinix": _mambaclinix,
    "rma_mamba": _rma_mamba,
    "segmamba": _segmamba,
    "swin_umamba": _swin_umamba,
    "umamba": _umamba,
    "vm_unet": _vm_unet,
    "vmamba": _vmamba,
    "vmamba_v1": _vmamba_v1,
}
