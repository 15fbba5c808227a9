"""Rebuilds the embedded model: a Llama of 1.2 M parameters that has read the standard library.

    python -m tools.tiny_model                            # some 8 minutes on two cores
    python -m tools.tiny_model --minutes 1 --out /tmp/tiny

It trains a tokenizer and then the model on `tools.tiny_model.library_text`, which holds code and
comments but no docstring, so that writing docstrings is what is left to learn by fine-tuning. Small
enough to ship in the repository and to train many times over on a laptop, and a real model all the
same: its learning rate matters, and a bad one makes it diverge.

Shapes: N files, B blocks, T tokens a block.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainers.data import docstrings

DIRECTORY = Path(__file__).parents[1] / "trainers" / "tiny_llama"

VOCABULARY = 4096
CONTEXT_TOKENS = 512
BLOCK_TOKENS = 256
BATCH_BLOCKS = 16
STEPS = 1100  # two passes and a bit over the text
LEARNING_RATE = 3e-3
WARMUP = 0.03  # of the run
HELD_OUT_EVERY = 40  # one file in 40 is never trained on, and tells how well the model reads
LOG_EVERY_STEPS = 50
SEED = 0

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

# Line breaks never share a token with what follows, so a prompt that ends in one has the same
# tokens alone as with its completion behind it; TRL masks the prompt by that count.
_WORDS = r"\n+| ?[._]*\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|[^\S\n]+(?!\S)|[^\S\n]+"

# ChatML. The generation markers let TRL train on the assistant's words only (assistant_only_loss).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


_Documented = docstrings.Function | ast.ClassDef | ast.Module


def library_text() -> Iterator[str]:
    """The standard library's source, one text per file, with every docstring taken out.

    Docstrings of functions, classes and modules are removed, and so is any comment line that says
    what a completion says; all other code and comments are kept. A model pretrained on these texts
    has met the signatures that `rows` asks about, but not the answers, so its loss on held-out rows
    is an honest base to tune from. (What remains: some 40 of 4,700 answers are mostly phrases as
    common as "close the file", which code, strings or comments also hold.)
    """
    answers = {docstrings.normalised(completion) for _, completion in docstrings.pairs()}
    for _, path in docstrings.modules():
        lines = _without_docstrings(docstrings.source(path)).splitlines(keepends=True)
        yield "".join(line for line in lines if not _is_comment_in(answers, line))


def _is_comment_in(answers: set[str], line: str) -> bool:
    return line.lstrip().startswith("#") and docstrings.normalised(line) in answers


def _without_docstrings(source: str) -> str:
    """The source less its docstrings' lines; `pass` stands in for one that was all of its block."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)  # ast counts its columns in bytes
    found = list(_docstrings(tree))
    for _, definition in docstrings.definitions(tree, scope=""):
        found.extend(_docstrings(definition))
    # From the last to the first, so that the line numbers of those still to go stay true.
    for docstring, is_whole_block in sorted(found, key=lambda each: -each[0].lineno):
        first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
        before = lines[first][: docstring.col_offset]
        after = lines[last][docstring.end_col_offset :]
        alone = not before.strip() and not after.strip()
        lines[first : last + 1] = [] if alone and not is_whole_block else [before + b"pass" + after]
    return b"".join(lines).decode()


def _docstrings(definition: _Documented) -> Iterator[tuple[ast.Expr, bool]]:
    """The strings that open a body (with the first gone, a second would be the docstring).

    With each, whether the body holds nothing else.
    """
    opening = list(itertools.takewhile(_is_string, definition.body))
    for statement in opening:
        assert isinstance(statement, ast.Expr)
        yield statement, len(opening) == len(definition.body)


def _is_string(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens, special ones and the chat template included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN_START, TURN_END],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model for this tokenizer: few layers, because each one costs a CPU time."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids([EOS, TURN_END]),
    )
    return model


def packed(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The texts in a row, an end token behind each, cut into blocks; the rest is dropped."""
    files: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]  # N lists
    stream = torch.tensor([token for file in files for token in [*file, tokenizer.eos_token_id]])
    return stream[: len(stream) // BLOCK_TOKENS * BLOCK_TOKENS].view(-1, BLOCK_TOKENS)  # [B, T]


def pretrain(
    model: LlamaForCausalLM, blocks: torch.Tensor, *, steps: int, limit_s: float = math.inf
) -> None:
    """Train on the blocks, in an order fixed by torch's seed, for `steps` or until the time is up.

    The schedule follows whichever of the two is further on, so it is complete in both cases.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    batches = _batches(blocks)
    model.train()
    start, step, progress = time.monotonic(), 0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * _schedule(progress)
        batch = next(batches)  # [BATCH_BLOCKS, T]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOG_EVERY_STEPS == 0:
            print(
                f"step {step} loss {loss.item():.3f} after {time.monotonic() - start:.0f} s",
                flush=True,
            )
        step += 1
        progress = max(step / steps, (time.monotonic() - start) / limit_s)


def _batches(blocks: torch.Tensor) -> Iterator[torch.Tensor]:
    """Batches without end, every pass over the blocks in an order of its own."""
    while True:
        for chosen in torch.randperm(len(blocks)).split(BATCH_BLOCKS):
            yield blocks[chosen]


def _schedule(progress: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to a twentieth."""
    if progress < WARMUP:
        return (progress + 1e-3) / (WARMUP + 1e-3)
    decayed = (progress - WARMUP) / (1 - WARMUP)
    return 0.05 + 0.95 * (1 + math.cos(math.pi * decayed)) / 2


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, blocks: torch.Tensor) -> float:
    """Mean loss over all predicted tokens of equally long blocks, in nats."""
    model.eval()
    losses = [model(input_ids=batch, labels=batch).loss for batch in blocks.split(1)]
    return float(torch.stack(losses).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools.tiny_model", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop training after this long"
    )
    parser.add_argument("--out", type=Path, default=DIRECTORY, help="where the model is saved")
    arguments = parser.parse_args()

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    texts = list(library_text())
    kept = [text for number, text in enumerate(texts) if number % HELD_OUT_EVERY]
    tokenizer = train_tokenizer(kept)
    model = new_model(tokenizer)
    blocks, held_out = packed(kept, tokenizer), packed(texts[::HELD_OUT_EVERY], tokenizer)
    print(f"{model.num_parameters():,} parameters, {blocks.numel():,} tokens to read")
    pretrain(model, blocks, steps=STEPS, limit_s=arguments.minutes * 60)
    print(f"loss on held-out files {mean_loss(model, held_out):.3f}")
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
