"""The check of a proof by whoever holds it: a second implementation beside the verifier's, for the trees that tests build."""

from collections.abc import Sequence

from tollway.domain.proofs import hash_node


def root_from(leaf_hash: bytes, index: int, tree_size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that a proof leads to (RFC 9162 section 2.1.3.2); None if it cannot be one of leaf `index` of `tree_size` leaves."""
    if not 0 <= index < tree_size:
        return None
    node, last, result = index, tree_size - 1, leaf_hash
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            result = hash_node(sibling, result)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            result = hash_node(result, sibling)
        node, last = node >> 1, last >> 1
    return result if last == 0 else None
