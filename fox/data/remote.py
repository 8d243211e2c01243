"""Files in a store elsewhere, such as `s3://bucket/folder` or `hf://datasets/NAME`, by fsspec: listed, and fetched one by one as they are read.

A file is fetched whole to this machine's folder for temporary files, read as any other, and removed: Parquet and archives are read by
place, and a connection that breaks while a page is read would otherwise look like a damaged page. fsspec and the store's own library
(s3fs, huggingface_hub) are imported only when they are used; credentials are those that the library finds by itself.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fox.data.quarantine import BadRecord
from fox.errors import UserError
from fox.recipe.schema import Source

_VERSIONS = ("ETag", "etag", "blob_id", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "created")
"""What stores call that which changes with a file, the surest first."""


class Remote(NamedTuple):
    """A file in a store."""

    url: str
    label: str
    """Its name below the source's path."""
    num_bytes: int
    version: str
    """Changes with its content."""


def is_remote(path: str) -> bool:
    """Whether a source's path has a scheme."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def listed(name: str, source: Source) -> Iterator[Remote]:
    """The file that a source names, or all of those below it. Raises UserError where there is no such store, file or folder."""
    try:
        from fsspec.core import url_to_fs

        store, root = url_to_fs(source.path)
        found = {root: store.info(root)} if store.isfile(root) else store.find(root, detail=True)
    except ImportError as error:
        needed = "fsspec" if error.name == "fsspec" else f"its own library ({error})"
        mend = "pip install 'foxlm[data]', or the library that is named."
        raise UserError(f"source.{name}.path", source.path, problem=f"needs {needed}", mend=mend) from None
    except Exception as error:  # each store's library has errors of its own
        raise _refused(name, source, error) from None
    if not found:
        raise _refused(name, source, FileNotFoundError("there is no such file or folder"))
    for path, info in found.items():
        label = path.removeprefix(root).lstrip("/") or path.rpartition("/")[2]
        version = next((str(info[key]) for key in _VERSIONS if info.get(key)), f"{info.get('size')} bytes")
        yield Remote(store.unstrip_protocol(path), label, int(info.get("size") or 0), version)


@contextmanager
def fetched(remote: Remote) -> Iterator[Path]:
    """The file on this machine, for as long as the block takes. Raises BadRecord where it can't be had whole."""
    from fsspec.core import url_to_fs

    with tempfile.TemporaryDirectory(prefix="fox-") as folder:
        path = Path(folder) / remote.label.rpartition("/")[2]
        try:
            store, there = url_to_fs(remote.url)
            store.get_file(there, str(path))
        except Exception as error:
            raise BadRecord("can't be fetched", _told(error)) from None
        if path.stat().st_size != remote.num_bytes:
            raise BadRecord("is not as long as its store said", f"{path.stat().st_size} of {remote.num_bytes} bytes")
        yield path


def _refused(name: str, source: Source, error: Exception) -> UserError:
    mend = "Name a folder or a file of the store, and see that you may read it."
    return UserError(f"source.{name}.path", source.path, problem=f"can't be listed: {_told(error)}", mend=mend)


def _told(error: Any) -> str:
    return f"{type(error).__name__}: {error}"[:300]
