"""Names that two parts of the program derive from one another."""

import pytest

from extproc.domain import DIALECTS, caller_of, cluster_of, provider_of


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("caller", DIALECTS)
def test_a_clusters_name_says_whose_it_is_and_for_whom(dialect, caller) -> None:
    """The provider's own cluster has its name; the other adds the caller's dialect."""
    cluster = cluster_of("my-provider_1", dialect, caller)
    assert provider_of(cluster) == "my-provider_1"
    assert ("+" in cluster) is (dialect != caller)
    if dialect != caller:
        assert caller_of(cluster) == caller
