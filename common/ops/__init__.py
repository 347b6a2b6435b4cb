"""Operations: the selective scan and its backends. Depends on torch only."""

from .chunked import selective_scan_chunked
from .selective_scan import BACKENDS, Backend, selective_scan
from .selective_scan_2d import selective_scan_2d, selective_scan_2d_chunked

__all__ = [
    "BACKENDS",
    "Backend",
    "selective_scan",
    "selective_scan_2d",
    "selective_scan_2d_chunked",
    "selective_scan_chunked",
]
