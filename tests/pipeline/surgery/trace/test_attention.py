"""`nn.MultiheadAttention` opened: what it takes and returns, beside PyTorch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytest import mark, raises
from torch import Tensor, nn

from pipeline.surgery import load_compact, save_compact, shrink
from pipeline.surgery.trace.attention import OpenAttention, can_be_opened
from tests.pipeline.surgery.laws import difference, reasons
from tests.pipeline.surgery.nets import net, still

L, S, E, HEADS = 5, 7, 8, 2
LATER = torch.ones(L, S).triu(2).bool()
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "each head's weights": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "bool mask": {"attn_mask": LATER},
    "float mask": {"attn_mask": torch.zeros(L, S).masked_fill(LATER, -torch.inf), "is_causal": True},
    "a mask an image and head": {"attn_mask": torch.stack([LATER, ~LATER, LATER, LATER, LATER, LATER])},
    "padding": {"key_padding_mask": torch.arange(S).expand(3, S) > torch.tensor([[5], [3], [6]])},
    "both": {"attn_mask": LATER, "key_padding_mask": torch.arange(S).expand(3, S) > torch.tensor([[5], [3], [6]])},
}


def inputs(batch_first: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    made = [torch.randn(3, n, w, generator=generator) for n, w in ((L, E), (S, 6), (S, 4))]
    return made if batch_first else [x.transpose(0, 1) for x in made]


@mark.parametrize("batch_first", [True, False])
@mark.parametrize("case", CASES)
def test_answers_are_pytorchs(case: str, batch_first: bool) -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(E, HEADS, kdim=6, vdim=4, batch_first=batch_first).eval()
    wanted, got = (m(*inputs(batch_first), **CASES[case]) for m in (theirs, OpenAttention(theirs)))
    torch.testing.assert_close(got[0], wanted[0])
    if wanted[1] is None:
        assert got[1] is None
    else:
        torch.testing.assert_close(got[1], wanted[1])


@mark.parametrize("masks", [{}, {"key_padding_mask": torch.tensor([False] * 4 + [True])}])
def test_one_image_without_a_batch(masks: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(E, HEADS).eval()
    x = torch.randn(L, E)
    wanted, got = theirs(x, x, x, **masks), OpenAttention(theirs)(x, x, x, **masks)
    torch.testing.assert_close(got, wanted)
    assert got[0].shape == (L, E) and got[1].shape == (L, L)


def test_causal_needs_its_mask() -> None:
    with raises(ValueError, match="attn_mask"):
        OpenAttention(nn.MultiheadAttention(E, HEADS))(*(torch.zeros(1, L, E),) * 3, is_causal=True)


@mark.parametrize("more", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_of_its_own_are_left_alone_and_frozen(more: dict[str, bool]) -> None:
    attention = nn.MultiheadAttention(E, HEADS, batch_first=True, **more)
    assert not can_be_opened(attention)
    model = net(lambda m, x: m.head(m.attention(x, x, x)[0]), attention=attention, head=nn.Linear(E, 3))
    example = (torch.zeros(2, L, E),)
    compact = shrink(model, example)
    assert "no rule for MultiheadAttention" in reasons(compact.certificate)
    assert difference(model, compact.model, example) < 1e-12


def test_a_causal_mask_and_weights_that_are_read(tmp_path: Path) -> None:
    """Of 4 dims a head, the first of q and k and the third of v are dead; the mask is a buffer that holds -inf."""

    def causal(m: Any, x: Tensor) -> Any:
        out, weights = m.attention(x, x, x, attn_mask=m.mask, is_causal=True)
        return m.head(out.mean(1)) * weights.amax()

    def made() -> Any:
        torch.manual_seed(2)
        model = net(causal, attention=nn.MultiheadAttention(E, HEADS, batch_first=True), head=nn.Linear(E, 3))
        model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(L))
        rows = [0, 4, E + 0, E + 4, 2 * E + 2, 2 * E + 6]
        with torch.no_grad():
            model.attention.in_proj_weight[rows] = 0
            model.attention.in_proj_bias[rows] = 0
        return model

    example = (torch.zeros(2, L, E),)
    model = made()
    compact = shrink(model, example)
    assert compact.model.get_parameter("attention.in_proj_weight").shape == (3 * E - 6, E)
    assert difference(model, compact.model, example) < 1e-12
    save_compact(compact, tmp_path)
    x = torch.randn(3, L, E)
    assert torch.equal(load_compact(tmp_path, made())(x), compact.model.eval()(x))


def test_an_encoder_layer_with_a_mask_is_taken() -> None:
    def masked(m: Any, x: Tensor) -> Any:
        return m.head(m.layer(x, src_mask=m.mask, is_causal=True).mean(1))

    layer = nn.TransformerEncoderLayer(E, HEADS, 12, batch_first=True)
    model = net(masked, layer=layer, head=nn.Linear(E, 3))
    model.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(L))
    still(model.layer.linear1, (0, 3))
    example = (torch.zeros(2, L, E),)
    assert difference(model, shrink(model, example).model, example) < 1e-12
