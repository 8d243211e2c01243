"""Rows with the same keys become copies, pairs and lines; documents with the same edges become components."""

import random

import numpy as np
import pytest

from fox.data.duplicates import groups, signatures
from fox.data.duplicates.candidates import _components, _parts
from fox.data.duplicates.signatures import BAND, BANDS, signature_writer
from fox.recipe.schema import Duplicates


def columns(**values):
    return {name: np.array(column, dtype=np.uint64) for name, column in values.items()}


def test_copies_agree_in_all_of_their_digest():
    found = groups._exact(columns(key=[5, 5, 4, 5, 4, 5], rest=[1, 2, 1, 1, 3, 2], document=[10, 11, 12, 13, 14, 15]))
    assert {name: column.tolist() for name, column in found.items()} == {"document": [13, 15], "kept": [10, 11]}


@pytest.mark.parametrize(
    ("key", "fingerprint", "pairs"),
    [
        ([7, 8, 9], [1, 2, 3], []),
        ([7, 8, 7], [1, 2, 3], [(0, 2)]),
        ([7, 7, 7], [1, 2, 3], [(0, 1), (0, 2), (1, 2)]),
        ([7, 7, 7, 7], [1, 2, 3, 4], [(0, 1), (0, 2), (1, 2), (0, 3), (2, 3)]),
        ([7, 7, 7, 7], [1, 1, 2, 1], [(0, 2)]),
        ([7, 7, 7, 7], [2, 1, 1, 2], [(0, 1)]),
        ([7, 8, 7, 8], [1, 2, 3, 4], [(0, 2), (1, 3)]),
        ([7, 7, 8, 8], [1, 1, 1, 1], []),
        ([7, 7, 8, 8], [1, 2, 2, 3], [(0, 1), (2, 3)]),
        ([], [], []),
    ],
)
def test_each_meets_the_first_and_the_one_before(key, fingerprint, pairs):
    found = groups._pairs(columns(key=key, print=fingerprint, document=range(len(key))))
    assert sorted(found.tolist()) == sorted(pairs)


def test_what_is_known_of_a_task_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(signatures, "_RUN_BYTES", 4000)
    with signature_writer(tmp_path, 0, Duplicates(near=False)) as writer:
        for number in range(1000):
            writer.add(str(number))
            assert len(writer._digests) <= 200
            assert sum(map(len, writer._rows.values())) <= 4000


def test_a_task_that_is_one_text_again_and_again_has_its_bands_once(tmp_path):
    with signature_writer(tmp_path, 0, Duplicates()) as writer:
        for _ in range(1000):
            writer.add("five words are a shingle")
    (file,) = signatures.signature_files(tmp_path, Duplicates())
    assert file.bytes_of("band") == BANDS * BAND.itemsize
    assert file.bytes_of("exact") == 1000 * signatures.EXACT.itemsize


def plain_components(edges: list[tuple[int, int]], size: int) -> list[int]:
    root = list(range(size))
    for _ in range(size):
        for edge in edges:
            least = min(root[node] for node in edge)
            for node in edge:
                root[node] = least
    return root


@pytest.mark.parametrize("num_edges", [0, 1, 20, 45, 100])
def test_components_are_those_of_a_plain_loop(num_edges):
    source = random.Random(num_edges)
    for size in (1, 2, 50):
        edges = [tuple(sorted(source.choices(range(size), k=2))) for _ in range(num_edges)]
        ends = np.array(edges, dtype=np.int64).reshape(-1, 2)
        assert _components(ends[:, 0], ends[:, 1], size).tolist() == plain_components(edges, size)


def test_a_long_chain_is_one_component_in_few_rounds():
    nodes = np.random.default_rng(1).permutation(200_000)
    assert not _components(nodes[:-1], nodes[1:], nodes.size).any()


def test_parts_are_whole_components(monkeypatch):
    monkeypatch.setattr("fox.data.duplicates.candidates.PART_DOCUMENTS", 3)
    assert _parts(np.array([0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 10, 10])).tolist() == [0] * 10 + [1, 1]
    assert _parts(np.array([], dtype=np.int64)).size == 0
