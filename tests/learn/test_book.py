"""The outputs that LLMs-from-scratch (Raschka 2024) prints in chapters 2 to 7 without downloaded weights, by our code.

`book.json` has the printed outputs with chapter and notebook cell. A number must agree in all printed digits: it may be
off by 0.6 of the last one, or by 2e-6 of itself where more digits are printed than float32 has.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from decimal import Decimal
from pathlib import Path

import pytest
import tiktoken
import torch
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpt2core import learn
from gpt2core.errors import UserError
from gpt2core.learn import attention
from gpt2core.tokenizer.byte_pair import END_OF_TEXT, WORD_PATTERN

BOOK: dict[str, str] = json.loads((Path(__file__).parent / "book.json").read_text(encoding="utf-8"))
LABELS = re.compile(
    r"layers\.\d\.\d|(Text|Row) \d|2nd|int64|(?<=\d),(?=\d)"
)  # their numbers are no results, and neither are the commas in 1,024
NUMBER = re.compile(r"-?(?:inf|\d+(?:\.\d*)?(?:e[-+]\d+)?)")
CFG = dict(
    vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.1, qkv_bias=False,
)  # fmt: skip


def printed(cell: str) -> str:
    """What a notebook cell prints, such as `ch03[28]`."""
    return BOOK[cell]


def flat(value: object) -> list[float]:
    if isinstance(value, Tensor):
        return value.double().flatten().tolist()
    return [number for each in value for number in flat(each)] if isinstance(value, list | tuple) else [float(value)]  # type: ignore[arg-type]


def assert_prints(cell: str, *values: object, atol: float = 0.0) -> None:
    """The printed numbers are those of `values`, in this order; of an abridged tensor its first and last columns."""
    text = LABELS.sub("", printed(cell))
    numbers = NUMBER.findall(text)
    if "..." in text:
        values = tuple(v[..., [0, 1, 2, -3, -2, -1]] if isinstance(v, Tensor) and v.size(-1) > 6 else v for v in values)
    computed = flat(list(values))
    assert len(computed) == len(numbers) > 0
    for number, value in zip(numbers, computed, strict=True):
        if number.endswith("inf"):
            assert value == float(number)
            continue
        last_digit = 10.0 ** Decimal(number).as_tuple().exponent  # type: ignore[operator]
        assert abs(value - float(number)) <= max(0.6 * last_digit, 2e-6 * abs(value), atol), (cell, number, value)


def test_every_published_output_is_compared() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert [cell for cell in BOOK if cell != "source" and f'"{cell}"' not in source] == []


@pytest.fixture(scope="module")
def gpt2(mirror: Path) -> tiktoken.Encoding:
    folder = mirror / "gpt2-bpe"
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=WORD_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


@pytest.fixture(scope="module")
def verdict(mirror: Path) -> str:
    return (mirror / "the-verdict" / "the-verdict.txt").read_text(encoding="utf-8")


# Chapter 2


def test_words(verdict: str) -> None:
    assert printed("ch02[18]") == f"Total number of character: {len(verdict)}\n{verdict[:99]}"
    assert learn.split_words("Hello, world. This, is a test.") == ast.literal_eval(printed("ch02[24]"))
    assert learn.split_words("Hello, world. Is this-- a test?") == ast.literal_eval(printed("ch02[26]"))
    words = learn.split_words(verdict)
    assert words[:30] == ast.literal_eval(printed("ch02[29]"))
    assert_prints("ch02[31]", len(words))
    vocab = learn.build_vocab(words)
    assert_prints("ch02[36]", len(vocab))
    assert list(vocab.items())[:51] == [ast.literal_eval(line) for line in printed("ch02[39]").splitlines()]
    text = '"It\'s the last he painted, you know," \n           Mrs. Gisburn said with pardonable pride.'
    v1 = learn.SimpleTokenizerV1(vocab)
    assert v1.encode(text) == ast.literal_eval(printed("ch02[47]"))
    for cell in ("ch02[49]", "ch02[50]"):
        assert v1.decode(v1.encode(text)) == ast.literal_eval(printed(cell))
    with pytest.raises(UserError, match="'Hello'"):  # cell 58: KeyError: 'Hello'
        v1.encode("Hello, do you like tea. Is this-- a test?")


def test_words_with_special_tokens(verdict: str) -> None:
    vocab = learn.build_vocab(learn.split_words(verdict), special=["<|endoftext|>", "<|unk|>"])
    assert_prints("ch02[61]", len(vocab))
    assert list(vocab.items())[-5:] == [ast.literal_eval(line) for line in printed("ch02[62]").splitlines()]
    v2 = learn.SimpleTokenizerV2(vocab)
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace."
    assert v2.encode(text) == ast.literal_eval(printed("ch02[67]"))
    assert v2.decode(v2.encode(text)) == ast.literal_eval(printed("ch02[68]"))


def test_byte_pairs(gpt2: tiktoken.Encoding) -> None:
    text = "Hello, do you like tea? <|endoftext|> In the sunlit terracesof someunknownPlace."
    ids = learn.text_to_token_ids(text, gpt2)
    assert_prints("ch02[74]", ids)
    assert learn.token_ids_to_text(ids, gpt2) == printed("ch02[75]")
    unknown = learn.text_to_token_ids("Akwirw ier", gpt2)
    assert_prints("ch02-ex[6]", unknown)
    lines = [f"{number} -> {gpt2.decode([number])}" for number in unknown[0].tolist()]
    assert lines == printed("ch02-ex[7]").splitlines()


def test_windows(gpt2: tiktoken.Encoding, verdict: str) -> None:
    ids = gpt2.encode(verdict)
    assert_prints("ch02[81]", len(ids))
    x, y = learn.GPTDatasetV1(gpt2.decode(ids[50:]), gpt2, max_length=4, stride=1)[0]
    assert_prints("ch02[84]", x, y)
    pairs = [(x.tolist()[:end], y.tolist()[end - 1]) for end in range(1, 5)]
    assert [f"{context} ----> {target}" for context, target in pairs] == printed("ch02[86]").splitlines()
    lines = [f"{gpt2.decode(context)} ----> {gpt2.decode([target])}" for context, target in pairs]
    assert lines == printed("ch02[87]").splitlines()


def test_batches(gpt2: tiktoken.Encoding, verdict: str) -> None:
    def first(n: int, **options: int) -> list[list[Tensor]]:
        loader = learn.create_dataloader_v1(verdict, shuffle=False, tokenizer=gpt2, **options)
        return [batch for batch, _ in zip(loader, range(n), strict=False)]

    for cell, batch in zip(("ch02[97]", "ch02[98]"), first(2, batch_size=1, max_length=4, stride=1), strict=True):
        assert_prints(cell, *batch)
    inputs, targets = first(1, batch_size=8, max_length=4, stride=4)[0]
    assert_prints("ch02[102]", inputs, targets)
    assert_prints("ch02[129]", inputs, inputs.shape)
    assert_prints("ch02-ex[17]", first(1, batch_size=4, max_length=2, stride=2)[0][0])
    assert_prints("ch02-ex[18]", first(1, batch_size=4, max_length=8, stride=2)[0][0])
    model = learn.DummyGPTModel(CFG | dict(emb_dim=256, context_length=4))
    positions = model.pos_emb(torch.arange(4))
    assert_prints("ch02[130]", model.tok_emb(inputs).shape)
    assert_prints("ch02[133]", positions.shape)
    assert_prints("ch02[135]", (model.tok_emb(inputs) + positions).shape)


def test_embeddings() -> None:
    torch.manual_seed(123)
    embedding = learn.DummyGPTModel(CFG | dict(vocab_size=6, emb_dim=3, context_length=1)).tok_emb
    assert_prints("ch02[111]", embedding.weight)
    assert_prints("ch02[114]", embedding(torch.tensor([3])))
    assert_prints("ch02[116]", embedding(torch.tensor([2, 3, 5, 1])))


# Chapter 3

INPUTS = torch.tensor(
    [
        [0.43, 0.15, 0.89], [0.55, 0.87, 0.66], [0.57, 0.85, 0.64],
        [0.22, 0.58, 0.33], [0.77, 0.25, 0.10], [0.05, 0.80, 0.55],
    ]
)  # fmt: skip
BATCH = torch.stack([INPUTS, INPUTS])


def test_attention_without_weights() -> None:
    scores = INPUTS @ INPUTS.T
    assert_prints("ch03[28]", scores[1])
    assert_prints("ch03[30]", scores[0, 1], scores[0, 1])
    assert_prints("ch03[33]", scores[1] / scores[1].sum(), 1)
    for cell, softmax in (("ch03[35]", learn.softmax_naive), ("ch03[37]", learn.softmax)):
        assert_prints(cell, softmax(scores[1]), softmax(scores[1]).sum())
    for cell in ("ch03[47]", "ch03[49]"):
        assert_prints(cell, scores)
    weights = learn.softmax(scores)
    assert_prints("ch03[51]", weights)
    assert_prints("ch03[53]", 1, weights.sum(dim=-1))
    contexts = learn.simple_attention(INPUTS)
    assert_prints("ch03[55]", contexts)
    for cell in ("ch03[40]", "ch03[57]"):
        assert_prints(cell, contexts[1])


def test_attention_with_raw_weights() -> None:
    torch.manual_seed(123)
    v1 = learn.SelfAttention_v1(3, 2)
    query, keys, values = INPUTS[1] @ v1.W_query, INPUTS @ v1.W_key, INPUTS @ v1.W_value
    assert_prints("ch03[70]", query)
    assert_prints("ch03[72]", keys.shape, values.shape)
    assert_prints("ch03[75]", query @ keys[1])
    assert_prints("ch03[77]", query @ keys.T)
    assert_prints("ch03[80]", learn.softmax(query @ keys.T / math.sqrt(2)))
    assert_prints("ch03[83]", v1(INPUTS)[1])
    assert_prints("ch03[86]", v1(INPUTS))


def test_attention_with_linear_layers_and_a_mask() -> None:
    torch.manual_seed(789)
    v2 = learn.SelfAttention_v2(3, 2)
    assert_prints("ch03[89]", v2(INPUTS))
    scores = v2.W_query(INPUTS) @ v2.W_key(INPUTS).T
    weights = learn.softmax(scores / math.sqrt(2))
    assert_prints("ch03[98]", weights)
    causal = learn.CausalAttention(3, 2, 6, dropout=0.5)
    assert_prints("ch03[100]", ~causal.mask)
    masked = weights * ~causal.mask
    assert_prints("ch03[102]", masked)
    assert_prints("ch03[105]", masked / masked.sum(dim=-1, keepdim=True))
    hidden = scores.masked_fill(causal.mask, float("-inf"))
    assert_prints("ch03[108]", hidden)
    causal_weights = learn.softmax(hidden / math.sqrt(2))
    assert_prints("ch03[110]", causal_weights)
    torch.manual_seed(123)
    assert_prints("ch03[115]", causal.dropout(torch.ones(6, 6)))
    torch.manual_seed(123)
    assert_prints("ch03[116]", causal.dropout(causal_weights))


def test_equal_weights_in_both_forms() -> None:
    torch.manual_seed(123)
    v2, v1 = learn.SelfAttention_v2(3, 2), learn.SelfAttention_v1(3, 2)
    for name in ("W_query", "W_key", "W_value"):
        setattr(v1, name, nn.Parameter(getattr(v2, name).weight.T))
    assert_prints("ch03-ex[8]", v1(INPUTS))
    assert_prints("ch03-ex[9]", v2(INPUTS))


def test_causal_attention_with_heads() -> None:
    assert_prints("ch03[120]", BATCH.shape)
    for cell, module in (
        ("ch03[121]", lambda: learn.CausalAttention(3, 2, 6, 0.0)),
        ("ch03[127]", lambda: learn.MultiHeadAttentionWrapper(3, 2, 6, 0.0, num_heads=2)),
        ("ch03[131]", lambda: attention.MultiHeadAttention(3, 2, 6, 0.0, num_heads=2)),
    ):
        torch.manual_seed(123)
        contexts = module()(BATCH)
        assert_prints(cell, contexts, contexts.shape)


def test_heads_by_one_matrix_product() -> None:
    rows = [
        [0.2745, 0.6584, 0.2775, 0.8573, 0.0772, 0.3565, 0.1479, 0.5331],
        [0.8993, 0.0390, 0.9268, 0.7388, 0.4066, 0.2318, 0.4545, 0.9737],
        [0.7179, 0.7058, 0.9156, 0.4340, 0.4606, 0.5159, 0.4220, 0.5786],
    ]
    heads = learn.CausalSelfAttention(8, 2, 3).split_heads(torch.tensor([rows]))  # [1, 2, 3, 4]
    for cell in ("ch03[138]", "ch03[140]"):
        assert_prints(cell, heads @ heads.transpose(2, 3))


# Chapter 4


def text_batch(gpt2: tiktoken.Encoding) -> Tensor:
    texts = ("Every effort moves you", "Every day holds a")
    return torch.cat([learn.text_to_token_ids(text, gpt2) for text in texts])


def test_the_dummy_model(gpt2: tiktoken.Encoding) -> None:
    batch = text_batch(gpt2)
    assert_prints("ch04[15]", batch)
    torch.manual_seed(123)
    logits = learn.DummyGPTModel(CFG)(batch)
    assert_prints("ch04[16]", logits.shape, logits)


def test_layer_norm() -> None:
    torch.manual_seed(123)
    x = torch.randn(2, 5)
    out = nn.Sequential(nn.Linear(5, 6), nn.ReLU())(x)
    assert_prints("ch04[22]", out)
    mean, variance = out.mean(dim=-1, keepdim=True), out.var(dim=-1, keepdim=True)
    assert_prints("ch04[24]", mean, variance)
    normal = (out - mean) / torch.sqrt(variance)
    means, variances = normal.mean(dim=-1), normal.var(dim=-1)
    assert_prints("ch04[28]", normal, means, variances, atol=1e-7)  # the means are rounding errors
    assert_prints("ch04[30]", means, variances)
    ours = learn.LayerNorm(6)(out)
    assert_prints("ch04[35]", ours.mean(dim=-1), ours.var(dim=-1, unbiased=False))


@pytest.mark.parametrize(("cell", "use_shortcut"), [("ch04[55]", False), ("ch04[57]", True)])
def test_gradients_of_a_deep_network(cell: str, use_shortcut: bool, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(123)
    network = learn.ExampleDeepNeuralNetwork([3, 3, 3, 3, 3, 1], use_shortcut)
    x = torch.tensor([[1.0, 0.0, -1.0]])
    assert_prints(cell, learn.gradient_sizes(network, x, torch.tensor([[0.0]])))
    learn.print_gradients(network, x)
    ours = capsys.readouterr().out
    assert [line.split(" of ")[0] for line in ours.splitlines()] == [
        line.split(" of ")[0] for line in printed(cell).splitlines()
    ]


def test_shapes_and_sizes() -> None:
    torch.manual_seed(123)
    x = torch.rand(2, 4, 768)
    block = learn.TransformerBlock(CFG)
    assert_prints("ch04[64]", x.shape, block(x).shape)
    assert_prints("ch04[47]", block.ff(x[:, :3]).shape)
    assert_prints("ch04-ex[5]", sum(parameter.numel() for parameter in block.ff.parameters()))
    assert_prints("ch04-ex[6]", sum(parameter.numel() for parameter in block.att.parameters()))


SIZES = {"small": "124M", "medium": "355M", "large": "774M", "xl": "1558M"}


def test_parameters_of_all_sizes() -> None:
    lines = []
    for name, size in SIZES.items():
        cfg = learn.gpt2_config(size) | dict(qkv_bias=False, tie_weights=False)
        counts = learn.parameter_counts(cfg)
        total = sum(counts.values())
        lines += [
            f"gpt2-{name}:",
            f"Total number of parameters: {total:,}",
            f"Number of trainable parameters considering weight tying: {total - counts['output layer']:,}",
            f"Total size of the model: {total * 4 / 2**20:.2f} MB",
        ]
    assert [line for line in printed("ch04-ex[12]").splitlines() if line] == lines
    assert [printed(cell) for cell in ("ch04[74]", "ch04[78]", "ch04[80]")] == lines[1:4]


@pytest.mark.slow
def test_the_model_and_its_text(gpt2: tiktoken.Encoding) -> None:
    batch = text_batch(gpt2)
    torch.manual_seed(123)
    model = learn.GPTModel(CFG)
    assert_prints("ch04[76]", model.tok_emb.weight.shape, model.out_head.weight.shape)
    logits = model(batch)
    assert_prints("ch04[72]", batch, logits.shape, logits)  # in train mode: dropout draws the same
    prompt = learn.text_to_token_ids("Hello, I am", gpt2)
    assert_prints("ch04[90]", prompt, prompt.shape)
    text = learn.generate_text_simple(model.eval(), prompt, max_new_tokens=6, context_size=1024)
    assert_prints("ch04[91]", text, text.size(1))
    assert learn.token_ids_to_text(text, gpt2) == printed("ch04[93]")


# Chapter 5


@pytest.fixture(scope="module")
def untrained() -> learn.GPTModel:
    torch.manual_seed(123)
    return learn.GPTModel(CFG | dict(context_length=256)).eval()


@pytest.mark.slow
def test_an_untrained_model(gpt2: tiktoken.Encoding, untrained: learn.GPTModel) -> None:
    prompt = learn.text_to_token_ids("Every effort moves you", gpt2)
    text = learn.token_ids_to_text(learn.generate_text_simple(untrained, prompt, 10, 256), gpt2)
    assert f"Output text:\n {text}" == printed("ch05[15]")
    inputs = torch.tensor([[16833, 3626, 6100], [40, 1107, 588]])
    targets = torch.tensor([[3626, 6100, 345], [1107, 588, 11311]])
    with torch.no_grad():
        logits = untrained(inputs)
    probabilities = learn.softmax(logits)
    assert_prints("ch05[21]", probabilities.shape)
    likeliest = learn.greedy(logits)
    assert_prints("ch05[26]", likeliest)
    lines = [learn.token_ids_to_text(ids, gpt2) for ids in (targets[0], likeliest[0])]
    assert printed("ch05[28]") == f"Targets batch 1: {lines[0]}\nOutputs batch 1: {lines[1]}"
    of_targets = probabilities.gather(-1, targets[..., None])
    assert_prints("ch05[32]", of_targets)
    assert_prints("ch05[34]", of_targets.log())
    assert_prints("ch05[36]", of_targets.log().mean())
    loss = learn.cross_entropy(logits.flatten(0, 1), targets.flatten())
    for cell in ("ch05[39]", "ch05[47]"):
        assert_prints(cell, loss)
    assert_prints("ch05[43]", logits.shape, targets.shape)
    assert_prints("ch05[45]", logits.flatten(0, 1).shape, targets.flatten().shape)
    assert_prints("ch05[49]", learn.perplexity(loss.item()), atol=0.05)


def verdict_loaders(verdict: str, gpt2: tiktoken.Encoding) -> list[DataLoader]:
    split = int(0.9 * len(verdict))
    options = dict(batch_size=2, max_length=256, stride=256, tokenizer=gpt2)
    return [
        learn.create_dataloader_v1(verdict[:split], **options),
        learn.create_dataloader_v1(verdict[split:], **options, drop_last=False, shuffle=False),
    ]


def test_the_loaders_of_the_verdict(gpt2: tiktoken.Encoding, verdict: str) -> None:
    assert verdict[:99].strip() == printed("ch05[55]").strip() and verdict[-99:] == printed("ch05[56]")
    assert_prints("ch05[57]", len(verdict), len(gpt2.encode(verdict)))
    loaders = verdict_loaders(verdict, gpt2)
    batches = [[(x.shape, y.shape) for x, y in loader] for loader in loaders]
    assert_prints("ch05[65]", *batches)
    n_tokens = [sum(x.numel() for x, _ in loader) for loader in loaders]
    assert_prints("ch05[67]", n_tokens, sum(n_tokens))


@pytest.fixture
def all_threads() -> None:
    """These models are not tiny; the fixture of all tests here resets the number."""
    torch.set_num_threads(os.cpu_count() or 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute, and twenty times that on a busy machine
@pytest.mark.usefixtures("all_threads")
def test_the_losses_of_an_untrained_model(gpt2: tiktoken.Encoding, verdict: str, untrained: learn.GPTModel) -> None:
    torch.manual_seed(123)
    losses = [learn.calc_loss_loader(loader, untrained, "cpu") for loader in verdict_loaders(verdict, gpt2)]
    assert_prints("ch05[71]", losses)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute, and twenty times that on a busy machine
@pytest.mark.usefixtures("all_threads")
def test_the_first_step_of_training(gpt2: tiktoken.Encoding, verdict: str) -> None:
    """The book's machine rounds differently, and AdamW's first step enlarges that where a gradient is almost 0."""
    train_loader, val_loader = verdict_loaders(verdict, gpt2)
    torch.manual_seed(123)
    model = learn.GPTModel(CFG | dict(context_length=256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=0.1)
    learn.calc_loss_batch(*next(iter(train_loader)), model, "cpu").backward()
    optimizer.step()
    losses = learn.evaluate_model(model, train_loader, val_loader, "cpu", eval_iter=5)
    published = re.match(r"Ep 1 \(Step 000000\): Train loss (\S+), Val loss (\S+)\n", printed("ch05[77]"))
    assert published and losses == pytest.approx([float(loss) for loss in published.groups()], abs=0.05)


NEXT_TOKEN = torch.tensor([[4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79]])
WORDS = ("closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you")


def test_sampling() -> None:
    assert printed("ch05[91]") == printed("ch05[92]") == WORDS[int(learn.greedy(NEXT_TOKEN))]
    for cell, temperature in (("ch05[94]", 1), ("ch05[100]", 0.1), ("ch05[102]", 5)):
        probabilities = learn.softmax(learn.scale_by_temperature(NEXT_TOKEN, temperature))[0]
        torch.manual_seed(123)
        draws = torch.tensor([torch.multinomial(probabilities, 1).item() for _ in range(1000)])
        counts = draws.bincount(minlength=9).tolist()
        assert [f"{n} x {word}" for n, word in zip(counts, WORDS, strict=True)] == printed(cell).splitlines()
    assert_prints("ch05-ex[10]", probabilities[6])
    torch.manual_seed(123)
    token = learn.generate(lambda ids: NEXT_TOKEN[:, None], torch.zeros(1, 1, dtype=torch.long), 1, 1, temperature=1.0)
    assert WORDS[int(token[0, 1])] == printed("ch05[92]")


def test_top_k() -> None:
    kept = learn.keep_top_k(NEXT_TOKEN, 3)
    order = kept[0].argsort(descending=True)[:3]
    assert_prints("ch05[108]", kept[0, order], order)
    assert_prints("ch05[109]", kept)
    assert_prints("ch05[111]", learn.softmax(kept))


# Chapter 6


def test_spam_messages(gpt2: tiktoken.Encoding, mirror: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = mirror / "sms-spam-collection" / "SMSSpamCollection"
    table = pandas.read_csv(path, sep="\t", header=None, names=["Label", "Text"])
    assert table.to_string(max_rows=10, max_colwidth=50, show_dimensions=True).split() == printed("ch06[15]").split()
    counts = table["Label"].value_counts()
    assert_prints("ch06[17]", counts.tolist())
    balanced = learn.create_balanced_dataset(table)
    assert_prints("ch06[19]", balanced["Label"].value_counts().tolist())
    balanced["Label"] = balanced["Label"].map({"ham": 0, "spam": 1})
    assert balanced.to_string(max_rows=10, max_colwidth=50, show_dimensions=True).split() == printed("ch06[22]").split()
    for part, name in zip(learn.random_split(balanced, 0.7, 0.1), ("train", "validation", "test"), strict=True):
        part.to_csv(tmp_path / f"{name}.csv", index=None)
    assert_prints("ch06[28]", learn.text_to_token_ids("<|endoftext|>", gpt2))
    train = learn.SpamDataset(tmp_path / "train.csv", gpt2)
    assert_prints("ch06[31]", train.max_length)
    others = [learn.SpamDataset(tmp_path / f"{name}.csv", gpt2, train.max_length) for name in ("validation", "test")]
    loaders = [
        DataLoader(train, batch_size=8, shuffle=True, drop_last=True),
        *(DataLoader(each, batch_size=8) for each in others),
    ]
    inputs, classes = next(iter(loaders[0]))
    assert_prints("ch06[38]", inputs.shape, classes.shape)
    assert_prints("ch06[40]", [len(loader) for loader in loaders])
    text = learn.text_to_token_ids("Do you have time", gpt2)
    assert_prints("ch06[62]", text, text.shape)


# Chapter 7


@pytest.fixture(scope="module")
def entries(mirror: Path) -> list[dict[str, str]]:
    return json.loads((mirror / "instruction-data" / "instruction-data.json").read_text(encoding="utf-8"))


def test_instructions(entries: list[dict[str, str]]) -> None:
    assert_prints("ch07[10]", len(entries))
    for cell, entry in (("ch07[12]", entries[50]), ("ch07[14]", entries[999])):
        assert ast.literal_eval(printed(cell).partition(":\n ")[2]) == entry
    for cell, entry in (("ch07[20]", entries[50]), ("ch07[22]", entries[999])):
        assert f"{learn.format_input(entry)}\n\n### Response:\n{entry['output']}" == printed(cell)


def test_padding_and_its_loss(gpt2: tiktoken.Encoding) -> None:
    assert_prints("ch07[32]", learn.text_to_token_ids("<|endoftext|>", gpt2))
    inputs, targets = learn.custom_collate_fn([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    assert_prints("ch07[46]", inputs, targets)
    assert_prints("ch07[36]", inputs)
    assert_prints("ch07[41]", inputs, targets.masked_fill(targets == -100, 50256))
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]])
    two = learn.cross_entropy(logits[:2], torch.tensor([0, 1]))
    assert_prints("ch07[48]", two)
    assert_prints("ch07[50]", learn.cross_entropy(logits, torch.tensor([0, 1, 1])))
    ignored = learn.cross_entropy(logits, torch.tensor([0, 1, -100]))
    assert printed("ch07[52]") == f"tensor({ignored:.4f})\nloss_1 == loss_3: tensor({two == ignored})"


def test_batches_of_instructions(gpt2: tiktoken.Encoding, entries: list[dict[str, str]]) -> None:
    train, test, val = entries[:935], entries[935:1045], entries[1045:]
    assert_prints("ch07[25]", len(train), len(val), len(test))
    torch.manual_seed(123)
    dataset = learn.InstructionDataset(train, gpt2)
    loader = DataLoader(dataset, 8, collate_fn=learn.custom_collate_fn, shuffle=True, drop_last=True)
    batches = list(loader)
    assert_prints("ch07[66]", [(inputs.shape, targets.shape) for inputs, targets in batches])
    inputs, targets = batches[-1]
    assert_prints("ch07[68]", inputs[0])
    assert_prints("ch07[70]", targets[0])


def test_targets_without_the_prompt(gpt2: tiktoken.Encoding) -> None:
    texts = (
        ("What is an antonym of 'complicated'?", "", "An antonym of 'complicated' is 'simple'."),
        ("Sort the following list in alphabetical order.", "Zebra, Elephant, Crocodile", "Crocodile, Elephant, Zebra"),
        ("Arrange the given numbers in descending order.", "5, 12, 8, 3, 15", "15, 12, 8, 5, 3."),
    )
    samples = [dict(zip(("instruction", "input", "output"), text, strict=True)) for text in texts]
    inputs, targets = learn.custom_collate_fn(list(learn.InstructionDataset(samples, gpt2)))  # type: ignore[arg-type]
    assert_prints("ch07-ex[25]", inputs.shape, targets.shape)
    prompt = gpt2.encode(learn.format_input(samples[1]))
    targets[1, : len(prompt) - 1] = -100
    assert_prints("ch07-ex[26]", inputs[1], targets[1])
    assert gpt2.decode(inputs[1].tolist()) == printed("ch07-ex[28]")
    assert gpt2.decode(targets[1][targets[1] != -100].tolist()) == printed("ch07-ex[30]")
