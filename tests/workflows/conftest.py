"""A small Ray cluster, for studies and for segmentation."""

from __future__ import annotations

import pytest


@pytest.fixture
def cluster():
    """Two nodes of a processor each, of which one has to be free for a run."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**small)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
