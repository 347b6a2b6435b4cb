"""What classes are called in SNOMED CT, as DICOM wants segments to be named."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any, NamedTuple

# Words of those classes whose connected parts are looked at one by one.
_LESIONS = (
    *("tumour", "tumor", "cancer", "lesion", "neoplasm", "metastasis", "metastases", "carcinoma"),
    *("mass", "nodule", "cyst"),
)
# What pydicom's dictionary spells otherwise, or has under a wider word.
_WORDS = {
    **dict.fromkeys(("tumour", "tumor", "cancer", "carcinoma"), "neoplasm"),
    **dict.fromkeys(("metastasis", "metastases"), "neoplasm secondary"),
    "oedema": "edema",
    "oesophagus": "esophagus",
    "vena cava": "inferior vena cava",
    "gall bladder": "gallbladder",
}
_SIDES = ("left", "right")
_LOCAL = "99MAMBA"  # a scheme of one's own begins with 99


class Coded(NamedTuple):
    """The codes of a segment, as pydicom's.

    Attributes:
        category: anatomical or abnormal.
        kind: what it is.
        side: left, right, or None.
    """

    category: Any
    kind: Any
    side: Any


def is_lesion(name: str) -> bool:
    """Whether a class of that name is one of lesions, such as "liver tumour"."""
    return any(word.removesuffix("s") in _LESIONS or word in _LESIONS for word in _words(name))


def coded(name: str) -> Coded:
    """The codes of a class, from pydicom's dictionary of DICOM's segmentation property types.

    A name is looked for as it is and without left or right, as one or several; of a lesion that is
    not there the last word is, then the first ("enhancing tumour", "tumour core"), but no word of
    an organ's, of which a part is another thing. What is not there at all gets a code of a scheme
    of our own, ``99MAMBA``.
    """
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    words = _words(name)
    side = next((word for word in words if word in _SIDES), None)
    plain = [word for word in words if word != side]
    kind = None
    parts = (*plain[-1:], *plain[:1]) if is_lesion(name) else ()
    for phrase in (" ".join(words), " ".join(plain), *parts):
        if (kind := _type(codes, phrase)) is not None:
            if phrase == " ".join(words):
                side = None  # which the code has
            break
    if kind is None:
        local = "_".join(words) or "class"
        if len(local) > 16:  # the most that a code may have
            local = f"{local[:11]}_{sha256(name.encode()).hexdigest()[:4]}"
        kind = Code(local, _LOCAL, name[:64])
    abnormal = is_lesion(name) or any(kind == code for code in codes.CID7159.concepts.values())
    category = "MorphologicallyAbnormalStructure" if abnormal else "AnatomicalStructure"
    return Coded(
        category=getattr(codes.SCT, category),
        kind=kind,
        side=getattr(codes.SCT, side.capitalize()) if side else None,
    )


def _words(name: str) -> list[str]:
    return re.findall(r"\w+", name.lower().replace("_", " "))


def _type(codes: Any, phrase: str) -> Any:
    for word in (phrase, phrase.removesuffix("s")):
        keyword = "".join(part.capitalize() for part in _WORDS.get(word, word).split())
        if keyword.isidentifier() and (code := getattr(codes.CID7151, keyword, None)) is not None:
            return code
    return None
