"""Operations: the selective scan and its backends. Depends on torch only."""

from .chunked import selective_scan_chunked
from .selective_scan import BACKENDS, Backend, selective_scan

__all__ = ["BACKENDS", "Backend", "selective_scan", "selective_scan_chunked"]
