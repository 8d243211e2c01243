"""The attention in C++ against its plain twin in float64, on the same bf16 numbers; and how it is compiled."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from fox.cache import cache_folder
from fox.kernels.attention import attend, attend_plainly
from fox.kernels.native import attention as native
from fox.kernels.native import library
from fox.kernels.native.attention import can_attend
from fox.model import ModelConfig, Transformer
from fox.model.loss import summed_loss

BOUND = 2.0**-7
"""Of the difference, relative to the size. Rounding to bf16 changes a number by up to 2^-9: of it, weights, slopes, the output that
slopes are made from, and the result are four."""

needs_kernel = pytest.mark.skipif(
    not can_attend(torch.device("cpu"), torch.bfloat16, 64), reason="no AVX-512 with bf16 (or AMX too), or no compiler"
)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def drawn(rows: int, tokens: int, heads: int, size: int, seed: int, scale: float = 1.0) -> Tensor:
    """(B, heads, T, H), stored as a projection makes it."""
    made = torch.randn(rows, tokens, heads, size, generator=torch.Generator().manual_seed(seed)) * scale
    return made.bfloat16().transpose(1, 2).requires_grad_()


def begins(rows: int, tokens: int, mean: float | None) -> Tensor:
    """Where each token's document begins: documents of so many tokens on the average, or one."""
    place_T = torch.arange(tokens)
    if mean is None:
        return torch.zeros(rows, tokens, dtype=torch.int32)
    first_BT = torch.rand(rows, tokens, generator=torch.Generator().manual_seed(tokens)) < 1 / mean
    return torch.where(first_BT, place_T, 0).cummax(1).values.int()


def outcome(function: Callable[..., Tensor], given: list[Tensor], begins_BT: Tensor, weight: Tensor) -> list[Tensor]:
    out = function(*given, begins_BT)
    return [out, *torch.autograd.grad((out * weight).sum(), given)]


def differences(given: list[Tensor], begins_BT: Tensor, others_BT: Tensor) -> list[float]:
    """Of the output and the three gradients, the first with `begins_BT`, the plain ones with `others_BT`; relative to their size."""
    weight = drawn(*(given[0].shape[i] for i in (0, 2, 1, 3)), seed=9).detach()
    made = outcome(attend, given, begins_BT, weight)
    exact = [x.detach().double().requires_grad_() for x in given]
    plain = outcome(attend_plainly, exact, others_BT, weight.double())
    return [((one - other).norm() / other.norm()).item() for one, other in zip(made, plain, strict=True)]


@needs_kernel
@pytest.mark.parametrize("mean_document", [None, 20.0])
@pytest.mark.parametrize(
    ("rows", "tokens", "heads", "kv_heads", "size"),
    [
        (1, 2, 1, 1, 32),
        (2, 63, 4, 2, 64),
        (1, 64, 2, 1, 96),
        (2, 65, 2, 2, 128),
        (1, 300, 4, 1, 64),
        (3, 200, 6, 3, 32),
    ],
)
def test_it_is_its_plain_twin(
    rows: int, tokens: int, heads: int, kv_heads: int, size: int, mean_document: float | None, threads: int
) -> None:
    given = [drawn(rows, tokens, n, size, seed) for seed, n in enumerate((heads, kv_heads, kv_heads))]
    where = begins(rows, tokens, mean_document)
    assert max(differences(given, where, where)) < BOUND


@needs_kernel
def test_that_check_notices_a_border_one_token_off() -> None:
    given = [drawn(2, 200, n, 64, seed) for seed, n in enumerate((4, 2, 2))]
    where = begins(2, 200, 20.0)
    assert max(differences(given, where, where)) < BOUND
    off = where.clone()
    off[:, 101:] = off[:, 101:].clamp_min(1) - 1
    assert min(differences(given, where, off)) > BOUND


@needs_kernel
def test_sharp_scores_and_far_maxima() -> None:
    """A maximum that is met block after block, of scores in the hundreds."""
    q, k, v = drawn(1, 256, 2, 64, 0, scale=20.0), drawn(1, 256, 2, 64, 1, scale=4.0), drawn(1, 256, 2, 64, 2)
    with torch.no_grad():
        k *= torch.linspace(0.1, 1, 256)[:, None]
    where = begins(1, 256, None)
    assert differences([q, k, v], where, where)[0] < BOUND
    assert all(x.isfinite().all() for x in outcome(attend, [q, k, v], where, torch.ones(())))


@needs_kernel
@pytest.mark.parametrize("which", [0, 1, 2], ids=["query", "key", "value"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_no_number_stays_none_where_the_plain_twin_has_none(which: int, number: float) -> None:
    """So that a loss of it is seen; and no other document has any of it."""
    given = [drawn(1, 200, n, 64, seed).detach() for seed, n in enumerate((2, 1, 1))]
    given[which][0, 0, 70, 3] = number
    where = torch.zeros(1, 200, dtype=torch.int32)
    where[:, 64:] = 64
    where[:, 128:] = 128
    given = [x.requires_grad_() for x in given]
    weight = torch.ones(1, 2, 200, 64)
    made = outcome(attend, given, where, weight.bfloat16())
    of_it = slice(64, 128)
    alone = [x.detach().float()[:, :, of_it].requires_grad_() for x in given]
    plain = outcome(attend_plainly, alone, where[:, of_it] - 64, weight[:, :, of_it])
    for place, (one, other) in enumerate(zip(made, plain, strict=True)):
        lost_T, plainly_lost_T = (~x.isfinite().all(-1).all(1)[0] for x in (one, other))
        if place < 2:
            assert lost_T[of_it][plainly_lost_T].all()
        else:  # the plain softmax makes weights of keys none, too, that the query does not see
            assert lost_T[of_it].any() == plainly_lost_T.any()
        assert not lost_T[:64].any() and not lost_T[128:].any()
    assert not made[0].isfinite().all()


@needs_kernel
def test_nothing_leaks_between_documents_or_from_what_follows() -> None:
    q, k, v = (drawn(1, 150, 2, 64, seed).detach() for seed in range(3))
    where = begins(1, 150, 30.0)
    before = attend(q, k, v, where)
    for place in (0, 37, 64, 100, 149):
        other = v.clone()
        other[:, :, place] += 1
        differs_T = (attend(q, k, other, where) != before).any(-1).any(1)[0]
        may_T = (torch.arange(150) >= place) & (where[0] <= place)
        assert not differs_T[~may_T].any() and differs_T[place], "bit for bit"


@needs_kernel
def test_the_same_bits_again(threads: int) -> None:
    given = [drawn(1, 300, n, 64, seed) for seed, n in enumerate((4, 1, 1))]
    where, weight = begins(1, 300, None), drawn(1, 300, 4, 64, 5).detach()
    first = outcome(attend, given, where, weight)
    for _ in range(3):
        for one, other in zip(first, outcome(attend, given, where, weight), strict=True):
            assert torch.equal(one, other)


@needs_kernel
def test_any_strides() -> None:
    """Contiguous, of a wider projection, turned, and at an odd place: the same bits."""
    q, k, v = (drawn(2, 70, 2, 32, seed).detach() for seed in range(3))
    where, weight = begins(2, 70, 9.0), drawn(2, 70, 2, 32, 5).detach()
    wanted = outcome(attend, [x.clone().requires_grad_() for x in (q, k, v)], where, weight)
    wide = torch.cat([q, k, v], dim=1)
    odd = torch.empty(q.numel() + 1, dtype=torch.bfloat16)[1:].view(q.shape).copy_(q)
    turned = k.transpose(2, 3).contiguous().transpose(2, 3)
    for some in ([x.contiguous() for x in (q, k, v)], list(wide.split(2, dim=1)), [odd, turned, v]):
        found = outcome(attend, [x.detach().requires_grad_() for x in some], where, weight)
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@needs_kernel
def test_torch_knows_the_operation_and_it_takes_nothing_else() -> None:
    q, k, v = (drawn(1, 40, n, 32, seed) for seed, n in enumerate((4, 2, 2)))
    where = begins(1, 40, 9.0)
    opcheck(native._attend, (q, k, v, where))
    wrong = [
        (q.float(), k, v, where), (q, k, v[:, :, 1:], where), (q[:, 1:], k, v, where), (q, k, v, where[:, 1:]), (q, k, v, where.long())
    ]  # fmt: skip
    for some in wrong:
        with pytest.raises(AssertionError):
            native._attend(*some)


@needs_kernel
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_that_multiplies_in_bf16_uses_it(
    checkpointing: bool, qk_norm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=32, max_position_embeddings=80, rope_theta=10_000.0, rms_norm_eps=1e-5, initializer_range=0.1,
        tie_word_embeddings=True, qk_norm=qk_norm,
    )  # fmt: skip
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    model.checkpointing = checkpointing
    token_BT = torch.randint(0, 64, (2, 80), generator=torch.Generator().manual_seed(1))
    segment_BT = (torch.arange(80) // 30).expand(2, -1)
    calls: list[str] = []
    monkeypatch.setattr(
        native, "_call", lambda name, *words, call=native._call: (calls.append(name), call(name, *words))
    )

    def gradient() -> Tensor:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            hidden_BTD = model(token_BT, segment_BT)
            summed_loss(hidden_BTD.flatten(0, 1), model.output_weight_VD, token_BT.flatten()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])  # type: ignore[union-attr]

    ours = gradient()
    assert calls == ["fox_attend"] * 2 + (
        ["fox_attend", "fox_attend_back"] * 2 if checkpointing else ["fox_attend_back"] * 2
    )
    monkeypatch.setattr("fox.model.transformer.can_attend", lambda *_: False)
    by_products = gradient()
    assert ((ours - by_products).norm() / by_products.norm()).item() < 4 * BOUND  # both round, many times


def test_other_queries_are_left_to_torch() -> None:
    cpu = torch.device("cpu")
    assert not can_attend(cpu, torch.float32, 64)
    assert not can_attend(cpu, torch.bfloat16, 48)
    assert not can_attend(torch.device("meta"), torch.bfloat16, 64)


SOURCE = 'extern "C" int answer() { return 42; }'


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answers" / "answer.cpp"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def test_it_is_compiled_once(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = library._load(source.parent, ())
    if made is None:
        pytest.skip("no compiler")
    assert isinstance(made, ctypes.CDLL) and made.answer() == 42
    (kept,) = (tmp_path / "cache/fox/native").iterdir()
    written = kept.stat().st_mtime_ns
    assert library._load(source.parent, ()) is not None and kept.stat().st_mtime_ns == written
    source.write_text(SOURCE.replace("42", "43"))
    changed = library._load(source.parent, ())
    assert changed is not None and changed.answer() == 43


@pytest.mark.parametrize("whose", ["a folder that others may write", "a library that others may write"])
def test_what_others_may_have_written_is_not_loaded(whose: str, source: Path, tmp_path: Path) -> None:
    if library._load(source.parent, ()) is None:
        pytest.skip("no compiler")
    place = tmp_path / "cache/fox/native"
    (kept,) = place.iterdir()
    before = kept.stat()
    if "folder" in whose:
        place.chmod(0o777)
        assert library._load(source.parent, ()) is not None
        assert place.stat().st_mode & 0o777 == 0o700
    else:
        kept.chmod(0o777)
        assert library._load(source.parent, ()) is not None
        assert kept.stat().st_ino != before.st_ino and kept.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("folder", ["cache/fox", "cache/fox/native"])
def test_a_cache_of_another_user_is_not_used(folder: str, source: Path, tmp_path: Path) -> None:
    if not library.shutil.which(library._COMPILER):
        pytest.skip("no compiler")
    if os.geteuid():
        pytest.skip("only root can give a folder away")
    (tmp_path / folder).mkdir(parents=True)
    os.chown(tmp_path / folder, 65534, 65534)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert library._load(source.parent, ()) is None
    assert not list(tmp_path.rglob("*.so"))


def test_half_a_library_is_made_anew(source: Path, tmp_path: Path) -> None:
    if library._load(source.parent, ()) is None:
        pytest.skip("no compiler")
    (kept,) = (tmp_path / "cache/fox/native").iterdir()
    other = kept.with_name("other.so")  # what this process has loaded must not be cut
    other.write_bytes(kept.read_bytes()[:1000])
    other.replace(kept)
    made = library._load(source.parent, ())
    assert made is not None and made.answer() == 42


@pytest.mark.parametrize("cache", ["/proc/nowhere", "file"])
def test_a_cache_that_can_not_be_written_is_told(
    cache: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))  # absolute ones stay as they are
    if not library.shutil.which(library._COMPILER):
        pytest.skip("no compiler")
    with pytest.warns(UserWarning, match="answers could not be compiled by .* and kept in .*native"):
        assert library._load(source.parent, ()) is None


def test_a_relative_cache_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cache_folder() == tmp_path / ".cache/fox"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    assert cache_folder() == tmp_path / "there/fox"


def test_without_a_compiler_torch_does_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.shutil, "which", lambda name: None)
    assert library._load(source.parent, ()) is None


def test_what_does_not_compile_is_told(source: Path, tmp_path: Path) -> None:
    source.write_text("this is no C++")
    if not library.shutil.which(library._COMPILER):
        pytest.skip("no compiler")
    with pytest.warns(UserWarning, match="answers could not be compiled"):
        assert library._load(source.parent, ()) is None
    assert list((tmp_path / "cache/fox/native").iterdir()) == []
