"""How far two models agree, held against torch's own cross entropy and KL divergence of the plain models' float64 logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fox.errors import Failure
from fox.eval import agreement as agreement_module
from fox.eval.agreement import Agreement, agreement, num_parts
from fox.model import Transformer
from fox.model.directory import save_model
from fox.model.stored import StoredModel, open_model
from fox.tokenizer import Tokenizer

# Our logits are float32 products of another order than the plain model's, off by 1e-5 of about 10.
LIMIT = 1e-4


def ignore() -> None:
    pass


@pytest.fixture
def store(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Callable[[str, Transformer], StoredModel]:
    def made(name: str, model: Transformer) -> StoredModel:
        save_model(tmp_path / name, model, tiny_tokenizer)
        return open_model(tmp_path / name)

    return made


@pytest.fixture
def tokens_BT() -> Tensor:
    return torch.randint(0, 400, (4, 21), generator=torch.Generator().manual_seed(1))


def all_of(tokens_BT: Tensor) -> Tensor:
    return torch.ones_like(tokens_BT, dtype=torch.bool)


def perturbed(model: Transformer, make_model: Callable[..., Transformer], by: float, **shape: object) -> Transformer:
    """The same model with noise on its weights."""
    other = make_model(**shape)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
            ours.copy_(theirs + by * torch.randn(theirs.shape, generator=generator))
    return other


def log_probabilities(model: Transformer, tokens_BT: Tensor, size: int) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(tokens_BT))[..., :size].double().log_softmax(-1)


def assert_as_directly(
    made: Agreement, a: Transformer, b: Transformer, tokens_BT: Tensor, counted_BT: Tensor, size: int = 400
) -> None:
    log_a_BTV, log_b_BTV = (log_probabilities(model, tokens_BT, size) for model in (a, b))
    kl_BT = F.kl_div(log_b_BTV, log_a_BTV, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(made.kl_N, kl_BT[counted_BT], atol=LIMIT, rtol=LIMIT)
    same_BT = log_a_BTV.argmax(-1) == log_b_BTV.argmax(-1)
    assert torch.equal(made.same_top_N, same_BT[counted_BT])
    others_BT1 = log_b_BTV.argmax(-1, keepdim=True)
    margin_BT = (log_a_BTV.amax(-1, keepdim=True) - log_a_BTV.gather(-1, others_BT1))[..., 0]
    torch.testing.assert_close(made.margin_N, margin_BT[counted_BT], atol=LIMIT, rtol=LIMIT)
    scored_BT = counted_BT[:, :-1] & counted_BT[:, 1:]
    assert made.predicted == int(scored_BT.sum())
    for model, nats in ((a, made.nats_a), (b, made.nats_b)):
        log_BTV = log_probabilities(model, tokens_BT, model.config.vocab_size)  # over all of its own vocabulary
        wanted = F.nll_loss(log_BTV[:, :-1][scored_BT], tokens_BT[:, 1:][scored_BT])
        assert nats == pytest.approx(wanted.item(), abs=LIMIT)


def test_a_model_agrees_with_itself_exactly(
    tiny_model: Transformer, store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    stored = store("a", tiny_model)
    made = agreement(stored, stored, tokens_BT, all_of(tokens_BT), ignore)
    assert made.kl_N.abs().max() == 0 == made.margin_N.abs().max()
    assert made.nats_a == made.nats_b
    told = made.as_dict()
    assert told["same_top_token"] == 1.0
    assert told["perplexity_change"] == 0.0 == told["max_kl_nats"]
    assert told["tokens"] == 84


@pytest.mark.parametrize("by", [1e-3, 0.05, 1.0])
def test_as_computed_directly(
    by: float, tiny_model: Transformer, make_model: Callable[..., Transformer], store: Callable[..., StoredModel],
    tokens_BT: Tensor,
) -> None:  # fmt: skip
    other = perturbed(tiny_model, make_model, by)
    made = agreement(store("a", tiny_model), store("b", other), tokens_BT, all_of(tokens_BT), ignore)
    assert_as_directly(made, tiny_model, other, tokens_BT, all_of(tokens_BT))
    told = made.as_dict()
    assert told["perplexity_change"] == pytest.approx(told["perplexity_b"] / told["perplexity_a"] - 1)
    assert 0 <= told["mean_kl_nats"] <= told["p99_kl_nats"] <= told["max_kl_nats"]


def test_the_order_matters(
    tiny_model: Transformer,
    make_model: Callable[..., Transformer],
    store: Callable[..., StoredModel],
    tokens_BT: Tensor,
) -> None:
    """The comparison with the direct computation notices a divergence the wrong way round, and one of other models."""
    other = perturbed(tiny_model, make_model, 0.05)
    back = agreement(store("b", other), store("a", tiny_model), tokens_BT, all_of(tokens_BT), ignore)
    with pytest.raises(AssertionError):
        assert_as_directly(back, tiny_model, other, tokens_BT, all_of(tokens_BT))
    again = agreement(store("a", tiny_model), store("c", make_model(seed=7)), tokens_BT, all_of(tokens_BT), ignore)
    with pytest.raises(AssertionError):
        assert_as_directly(again, tiny_model, other, tokens_BT, all_of(tokens_BT))


def test_only_counted_places_count_and_a_text_that_ends_predicts_nothing(
    tiny_model: Transformer,
    make_model: Callable[..., Transformer],
    store: Callable[..., StoredModel],
    tokens_BT: Tensor,
) -> None:
    other = perturbed(tiny_model, make_model, 0.05)
    counted_BT = all_of(tokens_BT)
    counted_BT[3, 9:] = False
    counted_BT[2, 1:] = False  # one token that nothing follows
    made = agreement(store("a", tiny_model), store("b", other), tokens_BT, counted_BT, ignore)
    assert (made.tokens, made.predicted) == (21 + 21 + 1 + 9, 20 + 20 + 0 + 8)
    assert_as_directly(made, tiny_model, other, tokens_BT, counted_BT)


@pytest.mark.parametrize(("bytes_at_a_time", "rows"), [(1, 8), (4 * 400 * 5, 3), (4 * 400 * 7, 1000)])
def test_scores_may_be_made_a_few_rows_at_a_time(
    bytes_at_a_time: int, rows: int, monkeypatch: pytest.MonkeyPatch, tiny_model: Transformer,
    make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor,
) -> None:  # fmt: skip
    monkeypatch.setattr(agreement_module, "_LOGITS_BYTES", bytes_at_a_time)
    monkeypatch.setattr(agreement_module, "_EXACT_ROWS", rows)
    other = perturbed(tiny_model, make_model, 0.05)
    made = agreement(store("a", tiny_model), store("b", other), tokens_BT, all_of(tokens_BT), ignore)
    assert_as_directly(made, tiny_model, other, tokens_BT, all_of(tokens_BT))


@pytest.mark.parametrize("larger_is_a", [False, True])
def test_rows_that_only_one_of_them_has_are_left_out(
    larger_is_a: bool, tiny_model: Transformer, make_model: Callable[..., Transformer],
    store: Callable[..., StoredModel], tokens_BT: Tensor,
) -> None:  # fmt: skip
    padded = make_model(vocab_size=448)
    own, theirs = padded.state_dict(), tiny_model.state_dict()
    padded.load_state_dict(
        theirs | {"embed_tokens.weight": torch.cat([theirs["embed_tokens.weight"], own["embed_tokens.weight"][400:]])}
    )
    pair = (padded, tiny_model) if larger_is_a else (tiny_model, padded)
    made = agreement(store("a", pair[0]), store("b", pair[1]), tokens_BT, all_of(tokens_BT), ignore)
    assert made.kl_N.abs().max() < 1e-9 and made.same_top_N.all()
    assert_as_directly(made, *pair, tokens_BT, all_of(tokens_BT), size=400)
    with pytest.raises(RuntimeError):  # torch itself: the two have not the same size
        assert_as_directly(made, *pair, tokens_BT, all_of(tokens_BT), size=448)


@pytest.mark.parametrize("damaged", ["a", "b"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_model_that_predicts_no_numbers_is_a_failure(
    damaged: str, wrong: float, tiny_model: Transformer, make_model: Callable[..., Transformer],
    store: Callable[..., StoredModel], tokens_BT: Tensor,
) -> None:  # fmt: skip
    broken = perturbed(tiny_model, make_model, 0.0)
    with torch.no_grad():
        broken.layers[1].mlp.up_proj.weight[3, 5] = wrong
    pair = (
        (store("a", broken), store("b", tiny_model)) if damaged == "a" else (store("a", tiny_model), store("b", broken))
    )
    with pytest.raises(Failure, match=rf"/{damaged}: predicts (NaN|infinity), so"):
        agreement(*pair, tokens_BT, all_of(tokens_BT), ignore)


def test_models_that_are_wrong_and_sure_of_it_have_a_perplexity_that_json_can_say(
    make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight.mul_(10_000)
    stored = store("a", model)
    told = agreement(stored, stored, tokens_BT, all_of(tokens_BT), ignore).as_dict()
    assert told["perplexity_a"] == math.exp(700)
    assert told["mean_kl_nats"] == 0


def test_who_asks_is_called_back_after_each_block_of_both(
    make_model: Callable[..., Transformer], store: Callable[..., StoredModel], tokens_BT: Tensor
) -> None:
    pair = store("a", make_model()), store("b", make_model(num_hidden_layers=2))
    called = []
    agreement(*pair, tokens_BT, all_of(tokens_BT), lambda: called.append(1))
    assert len(called) == num_parts(*pair) == 5
