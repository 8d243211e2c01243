"""What is read of a part is what was written, or the file is refused."""

import numpy as np
import pytest

from fox.data.duplicates.parted import PartedFile, files_of_one_making, is_made, parted_file
from fox.errors import Failure

KIND = np.dtype([("key", "<u8"), ("index", "<u4")])


def write(path, runs=((3, 3, 5), (), (0, 3, 9)), about=None):
    number = 0
    with parted_file(path, about or {"files": 1}) as file:
        for parts in runs:
            rows = np.array([(number + place, part) for place, part in enumerate(parts)], dtype=KIND)
            file.add("table", rows, np.array(parts, dtype=np.uint16), 10)
            number += len(parts)
    return path


def parts_of(file, first, end):
    return [part for rows in file.read("table", KIND, first, end) for part in rows["index"].tolist()]


def test_parts_are_read_alone(tmp_path):
    file = PartedFile(write(tmp_path / "a.parts"))
    assert parts_of(file, 0, 10) == [3, 3, 5, 0, 3, 9]
    assert parts_of(file, 3, 4) == [3, 3, 3]
    assert parts_of(file, 4, 10) == [5, 9]
    assert parts_of(file, 0, 3) == [0]
    assert parts_of(file, 1, 3) == parts_of(file, 10, 20) == parts_of(file, 12, 13) == []
    assert file.read("other", KIND, 0, 10) == []
    assert file.bytes_of("table") == 6 * 12
    assert file.bytes_of("other") == 0


def test_nothing_is_left_of_a_file_whose_writer_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), parted_file(tmp_path / "a.parts", {}) as file:
        file.add("table", np.zeros(1, dtype=KIND), np.zeros(1, dtype=np.uint16), 1)
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_wherever_a_file_is_cut_it_is_refused(tmp_path):
    path = write(tmp_path / "a.parts")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Failure, match="cut short or damaged"):
            PartedFile(path)


def test_a_file_that_lacks_a_byte_in_its_midst_is_refused(tmp_path):
    path = write(tmp_path / "a.parts")
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + whole[51:])
    with pytest.raises(Failure, match="cut short or damaged"):
        PartedFile(path)


def test_whatever_byte_is_changed_is_noticed_by_who_reads_all_parts(tmp_path):
    path = write(tmp_path / "a.parts", [(3, 3, 5, 9), (0, 3, 9)])
    whole = path.read_bytes()
    unnoticed = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            file = PartedFile(path)
            seen = [parts_of(file, part, part + 1) for part in range(10)]
        except Failure:
            continue
        assert seen == [[0], [], [], [3, 3, 3], [], [5], [], [], [], [9, 9]]
        unnoticed += 1
    assert unnoticed == 4 * (10 - 3 + 10 - 3)  # the CRCs of parts that hold nothing


def test_rows_of_another_size_are_refused(tmp_path):
    with pytest.raises(Failure, match="damaged"):
        PartedFile(write(tmp_path / "a.parts")).read("table", np.dtype("<u8"), 0, 1)


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(Failure, match="can't be read"):
        PartedFile(tmp_path / "a.parts")
    assert not is_made(tmp_path / "a.parts", {})


def test_files_of_one_making(tmp_path):
    def path_of(number):
        return tmp_path / f"{number}.parts"

    for number in range(2):
        write(path_of(number), about={"files": 3, "made_from": 1})
    with pytest.raises(Failure, match=r"2\.parts: is missing. Mend"):
        files_of_one_making(path_of, "Mend.")
    write(path_of(2), about={"files": 3, "made_from": 2})
    with pytest.raises(Failure, match=r"2\.parts: was made from something else than 0\.parts"):
        files_of_one_making(path_of, "Mend.")
    write(path_of(2), about={"files": 3, "made_from": 1})
    assert len(files_of_one_making(path_of, "Mend.")) == 3
    assert is_made(path_of(2), {"files": 3, "made_from": 1})


def test_a_file_of_other_rows_is_another_file(tmp_path):
    first, second = (PartedFile(write(tmp_path / name, runs)) for name, runs in (("a", [(1, 2)]), ("b", [(1, 3)])))
    assert first.crc != second.crc
